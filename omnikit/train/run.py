"""What all `recipes/<Corpus>/<Task>/train.py` share: from a recipe's YAML file to a trained checkpoint.

A killed run goes on where it was when started again with the same command. Under torchrun every process computes its
own share of the batches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import speechbrain as sb
import torch
from rich.console import Console

from omnikit import checkpoint
from omnikit.data.samples import collate_items, make_dataset
from omnikit.data.sources import read_sources, verify_cache
from omnikit.data.task_sampler import TaskMix
from omnikit.errors import full_disk_names
from omnikit.hparams import load_recipe
from omnikit.model import OmniLM
from omnikit.train.brain import Losses, OmniBrain, parameter_table
from omnikit.train.grad_accumulation import plan_accumulation
from omnikit.train.initial_weights import load_initial_weights
from omnikit.train.recipe_checks import check_stage
from omnikit.train.resume import RunIdentity, resumes, vocabulary_of
from omnikit.train.validation import Validation

logger = logging.getLogger(__name__)


def main() -> None:
    """Train what this process' command line describes.

    Raises:
        ValueError: bad file, flag, value or data, or the output folder holds checkpoints of another run; the message is
            one line for the user.
        Stopped: by a signal, or because nothing can be learned any more.
    """
    recipe = load_recipe(check=check_stage)
    hparams, run_opts = recipe.hparams, {**_run_options(recipe.run_opts), **recipe.run_opts}
    sb.utils.distributed.ddp_init_group(run_opts)
    changes = resumes(hparams["checkpointer"], RunIdentity(recipe, fixed_facts(hparams)))
    with full_disk_names(hparams["output_folder"]):
        sb.create_experiment_directory(hparams["output_folder"], recipe.path, recipe.overrides)
        logger.info(f"parts: {recipe.choice}")
        for change in changes:
            logger.warning("resuming: %s", change)
        train(hparams, run_opts)


def train(hparams: dict[str, Any], run_opts: dict[str, Any]) -> None:
    """Train the model of built hparams and save it in their output folder."""
    model = hparams["model"]
    origins = load_initial_weights(model, hparams["initial_weights"])
    model.freeze_all_but(hparams["trainable"])
    if sb.utils.distributed.if_main_process():
        Console().print(parameter_table(model, hparams["trainable"], origins))
    model.to(run_opts.get("device") or sb.utils.distributed.infer_device())  # encoder and codec work there, too

    with main_process_first():
        if hparams["verify_cache"] and sb.utils.distributed.if_main_process():
            verify_cache(hparams["cache_folder"])
        train_set, tasks, lengths = _samples(model, hparams["sources"], hparams)
        valid_set, _, valid_lengths = _samples(model, hparams["valid_sources"], hparams)
        options = {"tasks": hparams["tasks"], "cache_folder": hparams["cache_folder"]}
        validation = Validation(model, hparams["valid_sources"], **options)
    mix = TaskMix(
        tasks, lengths, weights=hparams["tasks"], max_batch_length=hparams["max_batch_length"], seed=hparams["seed"]
    )
    together = plan_accumulation(
        hparams["effective_batch_size"],
        mix.sequences_per_batch(),
        _processes(),
        run_opts.get("grad_accumulation_factor"),
    )
    logger.info(str(together))
    mix.batches = hparams["steps_per_epoch"] * together.batches

    brain = OmniBrain(
        modules={"losses": Losses(model)},
        opt_class=hparams["opt_class"],
        hparams={**hparams, "mix": mix, "validate": validation},
        run_opts={**run_opts, "grad_accumulation_factor": together.accumulated},
        checkpointer=hparams["checkpointer"],
    )
    loader = {"collate_fn": collate_items(model), "num_workers": hparams["num_workers"]}
    brain.fit(
        hparams["epochs"],
        train_set,
        valid_set,
        progressbar=False,  # the brain draws its own, with the loss of each stream
        train_loader_kwargs={"batch_sampler": mix, **loader},
        valid_loader_kwargs={"batch_sampler": mix.cover(valid_lengths), **loader},
    )
    if sb.utils.distributed.if_main_process():
        checkpoint.save(model, hparams["output_folder"])
        print(f"saved to {hparams['output_folder']}")


def fixed_facts(hparams: dict[str, Any]) -> dict[str, Any]:
    """Return what a resumed run must share with its checkpoints, besides the parts."""
    return {
        "stage": hparams["stage"],
        "vocabulary": vocabulary_of(hparams["model"].llm.tokenizer),
        "tasks": sorted(task for task, weight in hparams["tasks"].items() if weight > 0),
        "trainable": sorted(hparams["trainable"]),
        "optimiser": _name_of(hparams["opt_class"]),
    }


def _name_of(built: Any) -> str:
    """Return the name of the class or function behind a partial."""
    return getattr(getattr(built, "func", built), "__qualname__", str(built))


@contextmanager
def main_process_first() -> Iterator[None]:
    """The other processes go through the block after the main one, and find in the cache what it made."""
    main = sb.utils.distributed.if_main_process()
    if not main:
        sb.utils.distributed.ddp_barrier()
    yield
    if main:
        sb.utils.distributed.ddp_barrier()


def _samples(model: OmniLM, sources: dict[str, dict[str, Any] | None], hparams: dict[str, Any]):
    """Sources of the YAML file -> dataset, the task of each sample, its steps."""
    options = {name: hparams[name] for name in ("tasks", "cache_folder", "features")}
    read = read_sources(sources, model, **options)
    return make_dataset(model, read, hparams["tasks"], hparams["max_sample_length"])


def _processes() -> int:
    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if started else 1


def _run_options(given: dict[str, Any]) -> dict[str, Any]:
    """SpeechBrain's run options where the command line has none."""
    on_gpu = torch.cuda.is_available() and given.get("device") != "cpu"
    by_steps = given.get("ckpt_interval_steps", 0) > 0  # SpeechBrain takes one of the two
    return {
        "ckpt_interval_minutes": 0.0 if by_steps else 5.0,
        "distributed_backend": "nccl" if on_gpu else "gloo",
        "find_unused_parameters": True,  # a batch without speech leaves the adapter out, for example
    }
