"""Train a system for speech synthesis (T1A1): `python train.py hparams/train.yaml --data_folder DIR`.

The same command resumes a run that was killed. Under torchrun each process computes its own share of the batches.
"""

from __future__ import annotations

from typing import Any

import speechbrain as sb
from torch import Tensor
from torch.nn.functional import cross_entropy

from omnikit.data.collate import Batch
from omnikit.data.samples import collate_items
from omnikit.errors import bad_input_exits
from omnikit.hparams import load_recipe
from omnikit.losses import StreamLogits, stream_logits, sum_losses
from omnikit.tokens import IGNORE
from omnikit.train.brain import OmniBrain
from omnikit.train.recipe_checks import check_stage
from omnikit.train.run import cache_of, open_run, read_samples, save_system, start_model, step_sampler


class TTSBrain(OmniBrain):
    """A Brain that trains speech synthesis: the text stream is fed the text, the audio streams have the labels."""

    def compute_forward(self, batch: Batch, stage: sb.Stage) -> StreamLogits:
        """Return the logits of the audio streams at their labels; this task has no speech input."""
        batch = batch.to(self.device)
        return stream_logits(self.model, self.model(batch.steps), batch.labels)

    def compute_objectives(self, predictions: StreamLogits, batch: Batch, stage: sb.Stage) -> Tensor:
        """Return the mean cross-entropy of codes per audio stream, averaged over the audio streams without weights."""
        losses = sum_losses(predictions, code_loss)
        loss = losses.means().sum() / (losses.counts > 0).sum()
        self.log_losses(loss, losses, stage)
        return loss


def code_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of one audio stream's logits [P, V] with labels [P]."""
    return cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


def train(hparams: dict[str, Any], run_opts: dict[str, Any]) -> None:
    """Train the recipe's model and save it to the output folder."""
    model = start_model(hparams, run_opts)

    # Manifests -> samples with the codes of recordings -> batches of similar lengths in random order.
    with cache_of(hparams):
        train_set = read_samples(model, hparams["sources"], hparams)
        valid_set = read_samples(model, hparams["valid_sources"], hparams)
    sampler = step_sampler(train_set, hparams, run_opts)
    loader = {"collate_fn": collate_items(model), "num_workers": hparams["num_workers"]}

    brain = TTSBrain(
        modules={"model": model},
        opt_class=hparams["opt_class"],
        hparams={**hparams, "sampler": sampler, "validate": lambda brain: {}},  # evaluate.py scores the speech
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit(
        hparams["epochs"],
        train_set,
        valid_set,
        progressbar=False,  # OmniBrain shows its own, with the loss of each stream
        train_loader_kwargs={"batch_sampler": sampler, **loader},
        valid_loader_kwargs={"batch_sampler": sampler.cover(valid_set.lengths), **loader},
    )
    save_system(model, hparams)


def main() -> None:
    """Train the recipe that the command line names, with its overrides."""
    recipe = load_recipe(check=check_stage)
    with open_run(recipe) as run_opts:
        train(recipe.hparams, run_opts)


if __name__ == "__main__":
    with bad_input_exits():
        main()
