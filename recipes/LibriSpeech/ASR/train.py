"""Train speech recognition alone: `python train.py hparams/train.yaml --data_folder DIR`.

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
from omnikit.train.brain import OmniBrain, encoded
from omnikit.train.checks import check_stage
from omnikit.train.run import cache_of, open_run, read_samples, save_system, start_model, task_sampler
from omnikit.train.validate import Validation

TEXT = 0
"""The stream of the transcript."""


class ASRBrain(OmniBrain):
    """Learns to write down what is said. The audio streams are silent and carry no labels."""

    def compute_forward(self, batch: Batch, stage: sb.Stage) -> StreamLogits:
        """Return the logits where a token of a transcript is to be predicted."""
        batch = batch.to(self.device)
        features, lengths = encoded(self.model, batch)
        speech = batch.speech(*self.model.adapter(features, lengths))
        return stream_logits(self.model, self.model(batch.steps, speech), batch.labels)

    def compute_objectives(self, predictions: StreamLogits, batch: Batch, stage: sb.Stage) -> Tensor:
        """Return the mean cross-entropy of the transcripts' tokens."""
        losses = sum_losses(
            predictions, lambda logits, labels: cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        )
        loss = losses.means()[TEXT]
        self.log_losses(loss, losses, stage)
        return loss


def train(hparams: dict[str, Any], run_opts: dict[str, Any]) -> None:
    """Train the model of built hparams and save it in their output folder."""
    model = start_model(hparams, run_opts)
    with cache_of(hparams):  # manifests -> samples; validation transcribes some recordings and gives their WER
        train_set = read_samples(model, hparams["sources"], hparams)
        valid_set = read_samples(model, hparams["valid_sources"], hparams)
        options = {name: hparams[name] for name in ("tasks", "cache_folder")}
        word_errors = Validation(model, hparams["valid_sources"], **options)
    sampler = task_sampler(train_set, hparams, run_opts)  # one task: batches of similar length in random order
    hparams = {**hparams, "mix": sampler, "validate": word_errors}
    brain = ASRBrain({"model": model}, hparams["opt_class"], hparams, run_opts, hparams["checkpointer"])
    loader = {"collate_fn": collate_items(model), "num_workers": hparams["loader_workers"]}
    brain.fit(
        hparams["epochs"],
        train_set.samples,
        valid_set.samples,
        progressbar=False,  # the brain draws its own
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
