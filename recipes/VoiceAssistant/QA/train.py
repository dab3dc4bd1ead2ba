"""Train one stage: `python train.py hparams/stageN.yaml --data_folder DIR`.

Every stage is this script with another YAML file: which parts train, on which tasks, from which folder it starts.
A killed run goes on where it was when started again with the same command.
"""

from __future__ import annotations

import logging
import sys

import speechbrain as sb
from rich.console import Console

from omnikit import checkpoint
from omnikit.data.mix import TaskMix
from omnikit.data.samples import collate_items, make_dataset
from omnikit.data.sources import read_sources
from omnikit.errors import bad_input_exits
from omnikit.hparams import load_recipe
from omnikit.train.brain import OmniBrain, parameter_table
from omnikit.train.start import start_weights
from omnikit.train.validate import Validation


def samples(model, sources: dict, hparams: dict):
    """Sources of the YAML file -> dataset, the task of each sample, its steps."""
    read = read_sources(sources, model, tasks=hparams["tasks"], cache_folder=hparams["cache_folder"])
    return make_dataset(model, read, hparams["tasks"])


def train(hparams: dict, run_opts: dict) -> None:
    model = hparams["model"]
    origins = start_weights(model, hparams["start_from"])
    Console().print(parameter_table(model, hparams["trainable"], origins))

    train_set, tasks, lengths = samples(model, hparams["sources"], hparams)
    mix = TaskMix(
        tasks,
        lengths,
        weights=hparams["tasks"],
        batch_steps=hparams["batch_steps"],
        batches=hparams["batches_per_epoch"],
        seed=hparams["seed"],
    )
    valid_set, _, valid_lengths = samples(model, hparams["valid_sources"], hparams)
    collate = collate_items(model)
    validation = Validation(
        model, hparams["valid_sources"], tasks=hparams["tasks"], cache_folder=hparams["cache_folder"]
    )

    brain = OmniBrain(
        modules={"model": model},
        opt_class=hparams["opt_class"],
        hparams={**hparams, "mix": mix, "validate": validation},
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit(
        hparams["epochs"],
        train_set,
        valid_set,
        progressbar=False,  # the brain draws its own, with the loss of each stream
        train_loader_kwargs={"batch_sampler": mix, "collate_fn": collate},
        valid_loader_kwargs={"batch_sampler": mix.cover(valid_lengths), "collate_fn": collate},
    )
    if sb.utils.distributed.if_main_process():
        checkpoint.save(model, hparams["output_folder"])
        print(f"saved to {hparams['output_folder']}")


def main() -> None:
    recipe = load_recipe()
    hparams, run_opts = recipe.hparams, {"ckpt_interval_minutes": 5.0, **recipe.run_opts}
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], recipe.path, recipe.overrides)
    logging.getLogger("omnikit").info(f"parts: {recipe.choice}")
    train(hparams, run_opts)


if __name__ == "__main__":
    with bad_input_exits():
        sys.exit(main())
