"""Train speech synthesis alone: `python train.py hparams/train.yaml --data_folder DIR`.

A killed run goes on where it was when started again with the same command. Under torchrun every process computes its
own share of the batches.
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
from omnikit.train.run import cache_of, open_run, read_samples, save_system, start_model, task_sampler


class TTSBrain(OmniBrain):
    """Learns to speak given texts. The text stream is fed the text and carries no labels."""

    def compute_forward(self, batch: Batch, stage: sb.Stage) -> StreamLogits:
        """Return the logits of the audio streams; there is no speech to encode."""
        batch = batch.to(self.device)
        return stream_logits(self.model, self.model(batch.steps), batch.labels)

    def compute_objectives(self, predictions: StreamLogits, batch: Batch, stage: sb.Stage) -> Tensor:
        """Return the mean over the audio streams of the mean cross-entropy of their codes, all streams alike."""
        losses = sum_losses(predictions, code_loss)
        loss = losses.means().sum() / (losses.counts > 0).sum()
        self.log_losses(loss, losses, stage)
        return loss


def code_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of the logits [P, V] of one audio stream at its labels [P]."""
    return cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


def train(hparams: dict[str, Any], run_opts: dict[str, Any]) -> None:
    """Train the model of built hparams and save it in their output folder."""
    model = start_model(hparams, run_opts)

    # Manifests -> samples with the codes of their recordings -> batches of similar length in random order.
    with cache_of(hparams):
        train_set = read_samples(model, hparams["sources"], hparams)
        valid_set = read_samples(model, hparams["valid_sources"], hparams)
    sampler = task_sampler(train_set, hparams, run_opts)
    loader = {"collate_fn": collate_items(model), "num_workers": hparams["num_workers"]}

    brain = TTSBrain(
        modules={"model": model},
        opt_class=hparams["opt_class"],
        hparams={**hparams, "mix": sampler, "validate": lambda brain: {}},  # speech is judged by evaluate.py
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit(
        hparams["epochs"],
        train_set.samples,
        valid_set.samples,
        progressbar=False,  # the brain draws its own, with the loss of each stream
        train_loader_kwargs={"batch_sampler": sampler, **loader},
        valid_loader_kwargs={"batch_sampler": sampler.cover(valid_set.lengths), **loader},
    )
    save_system(model, hparams)


def main() -> None:
    """Train what this process' command line describes."""
    recipe = load_recipe(check=check_stage)
    with open_run(recipe) as run_opts:
        train(recipe.hparams, run_opts)


if __name__ == "__main__":
    with bad_input_exits():
        main()
