"""Train a system for speech synthesis (T1A1): `python train.py hparams/train.yaml --data_folder DIR`.

The same command resumes a run that was killed. Under torchrun each process computes its own share of the batches.
"""

from __future__ import annotations

from typing import Any

import speechbrain as sb
from torch import Tensor

from omnikit.data.collate import Batch
from omnikit.errors import bad_input_exits
from omnikit.hparams import load_recipe
from omnikit.losses import cross_entropy, stream_losses
from omnikit.model import Hidden
from omnikit.torchrun import Share
from omnikit.train.brain import OmniBrain
from omnikit.train.loader import batch_loader
from omnikit.train.recipe_checks import check_stage
from omnikit.train.run import cache_of, open_run, read_samples, save_system, start_model, step_sampler

code_loss = cross_entropy  # for another loss of each code, write a function, see recipes/README.md


class TTSBrain(OmniBrain):
    """A Brain that trains speech synthesis: the text stream is fed the text, the audio streams have the labels."""

    def compute_forward(self, batch: Batch, stage: sb.Stage) -> Hidden:
        """Return the hidden states of all positions; this task has no speech input."""
        return self.model(batch.steps, packed=batch.packed)

    def compute_objectives(self, predictions: Hidden, batch: Batch, stage: sb.Stage) -> Tensor:
        """Return the batch's part of the loss: the mean over the audio streams of the mean loss of all codes of the
        optimiser step."""
        weights = self.label_weights(batch)
        loss, losses = stream_losses(self.model, predictions, batch, weights, code_loss, compiled=self.compiled)
        self.log_losses(losses, stage)
        return loss


def train(hparams: dict[str, Any], run_opts: dict[str, Any]) -> None:
    """Train the recipe's model and save it to the output folder."""
    model = start_model(hparams, run_opts)

    # Manifests -> samples with the codes of recordings -> batches of similar lengths in random order.
    with cache_of(hparams):
        train_set = read_samples(model, hparams["sources"], hparams, training=True)
        valid_set = read_samples(model, hparams["valid_sources"], hparams)
    sampler = step_sampler(train_set, hparams, run_opts)
    loading = {"num_workers": hparams["num_workers"], "device": model.device}
    train_loader = batch_loader(train_set, sampler, model, **loading)
    valid_loader = batch_loader(valid_set, sampler.cover(valid_set.lengths, Share.of_torchrun()), model, **loading)

    brain = TTSBrain(
        modules={"model": model},
        opt_class=hparams["opt_class"],
        hparams={**hparams, "sampler": sampler, "validate": lambda brain: {}},  # evaluate.py scores the speech
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit(hparams["epochs"], train_loader, valid_loader, progressbar=False)  # OmniBrain shows its own
    save_system(model, hparams)


def main() -> None:
    """Train the recipe that the command line names, with its overrides."""
    recipe = load_recipe(check=check_stage)
    with open_run(recipe) as run_opts:
        train(recipe.hparams, run_opts)


if __name__ == "__main__":
    with bad_input_exits():
        main()
