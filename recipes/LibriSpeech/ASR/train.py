"""Train a system for speech recognition (A1T1): `python train.py hparams/train.yaml --data_folder DIR`.

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
from omnikit.train.brain import OmniBrain, encoded
from omnikit.train.recipe_checks import check_stage
from omnikit.train.run import cache_of, open_run, read_samples, save_system, start_model, step_sampler
from omnikit.train.validation import Validation

TEXT = 0
"""Index of the text stream, which holds the transcript."""


class ASRBrain(OmniBrain):
    """A Brain that trains speech recognition: audio streams have no labels, the text stream has the transcript."""

    def compute_forward(self, batch: Batch, stage: sb.Stage) -> StreamLogits:
        """Return the logits of the text stream at the positions of transcripts."""
        batch = batch.to(self.device)
        features, lengths = encoded(self.model, batch)
        speech = batch.speech(*self.model.adapter(features, lengths))
        return stream_logits(self.model, self.model(batch.steps, speech), batch.labels)

    def compute_objectives(self, predictions: StreamLogits, batch: Batch, stage: sb.Stage) -> Tensor:
        """Return the mean cross-entropy over the tokens of the transcripts."""
        losses = sum_losses(predictions, token_loss)
        loss = losses.means()[TEXT]
        self.log_losses(loss, losses, stage)
        return loss


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of the text stream's logits [P, V] with labels [P]."""
    return cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


def train(hparams: dict[str, Any], run_opts: dict[str, Any]) -> None:
    """Train the recipe's model and save it to the output folder."""
    model = start_model(hparams, run_opts)

    # Manifests -> samples -> batches of similar lengths in random order; validation computes the word error rate.
    with cache_of(hparams):
        train_set = read_samples(model, hparams["sources"], hparams)
        valid_set = read_samples(model, hparams["valid_sources"], hparams)
        validation = Validation(
            model, hparams["valid_sources"], tasks=hparams["tasks"], cache_folder=hparams["cache_folder"]
        )
    sampler = step_sampler(train_set, hparams, run_opts)
    loader = {"collate_fn": collate_items(model), "num_workers": hparams["num_workers"]}

    brain = ASRBrain(
        modules={"model": model},
        opt_class=hparams["opt_class"],
        hparams={**hparams, "sampler": sampler, "validate": validation},
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
