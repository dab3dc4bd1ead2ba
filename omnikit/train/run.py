"""Functions shared by the training scripts `recipes/<Corpus>/<Task>/train.py`: set-up, data, saving."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from rich.console import Console

from omnikit import checkpoint
from omnikit.data.augment import SeededAugment, named_augment
from omnikit.data.label_cost import label_cost
from omnikit.data.sample_draws import SampleDraws
from omnikit.data.samples import Samples, make_dataset
from omnikit.data.sources import read_sources, verify_cache
from omnikit.data.step_plan import EffectiveBatch
from omnikit.data.step_sampler import StepSampler
from omnikit.errors import full_disk_names
from omnikit.files import write_text
from omnikit.hparams import Recipe
from omnikit.llms.tokenizers import vocabulary_of
from omnikit.model import OmniLM
from omnikit.train.block_options import set_up_blocks
from omnikit.train.brain import parameter_table
from omnikit.train.distributed import check_distributed
from omnikit.train.first_process import first_process
from omnikit.train.initial_weights import load_initial_weights
from omnikit.train.packing import require_packed_rows
from omnikit.train.precision import precisions
from omnikit.train.process_group import end_processes, start_processes
from omnikit.train.resume import RunIdentity, resumes
from omnikit.train.stored_state import whole_weights

logger = logging.getLogger(__name__)


@contextmanager
def open_run(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Set up distributed processes, the output folder and its log for the training in a `with` block.

    Yields:
        SpeechBrain's run options, including those of the command line.

    Raises:
        ValueError: the output folder holds checkpoints of another run, or the disk is full in the block.
    """
    hparams, run_opts = recipe.hparams, {**_run_options(recipe.run_opts), **recipe.run_opts}
    check_distributed(hparams["distributed"], run_opts.get("precision"))
    start_processes(run_opts["distributed_backend"], hparams["hang_timeout"])
    changes = resumes(hparams["checkpointer"], RunIdentity(recipe, fixed_facts(hparams)))
    with full_disk_names(hparams["output_folder"]):
        make_output_folder(recipe)
        logger.info(f"parts: {recipe.choice}")
        logger.info(f"precision: {run_opts['precision']} in training, {run_opts['eval_precision']} in validation")
        for change in changes:
            logger.warning("resuming: %s", change)
        yield run_opts
        end_processes()


def make_output_folder(recipe: Recipe) -> None:
    """Create the output folder of a recipe with `log.txt`, a copy of the script and `hyperparams.yaml`.

    `hyperparams.yaml` is the complete recipe, with the files that it includes.
    """
    folder = Path(recipe.hparams["output_folder"])
    sb.create_experiment_directory(str(folder))
    if not sb.utils.distributed.if_main_process():
        return
    head = f"# Generated {date.today()} from:\n# {Path(recipe.path).absolute()}\n# yamllint disable\n"
    write_text(folder / "hyperparams.yaml", head + recipe.text)
    script = Path(sys.argv[0])
    if script.suffix == ".py":
        shutil.copy(script, folder)


def start_model(hparams: dict[str, Any], run_opts: dict[str, Any]) -> OmniLM:
    """Return the recipe's model with its initial weights, on its device, with all but `trainable` parts frozen."""
    model = hparams["model"]
    origins = load_initial_weights(model, hparams["initial_weights"])
    model.freeze_all_but(hparams["trainable"])
    if sb.utils.distributed.if_main_process():
        Console().print(parameter_table(model, hparams["trainable"], origins))
    model.to(run_opts.get("device") or sb.utils.distributed.infer_device())  # including encoder and codec
    set_up_blocks(model, hparams)
    if hparams["pack"]:
        require_packed_rows(model)
    return model


def read_samples(
    model: OmniLM, sources: dict[str, dict[str, Any] | None], hparams: dict[str, Any], *, training: bool = False
) -> Samples:
    """Read the manifests of sources and return samples of the recipe's tasks.

    Features and codes of recordings come from `cache_folder`; missing ones are computed and added to it.

    Args:
        training: whether the samples are trained on, so that the recipe's `augment` applies to them.

    Raises:
        ValueError: a manifest cannot be read, it gives no sample, or more than `max_encode_hours` are to be computed.
    """
    options = {name: hparams[name] for name in ("tasks", "cache_folder", "features", "max_encode_hours")}
    effects = named_augment(hparams["augment"]) if training else None
    augment = None if effects is None else SeededAugment(effects, hparams["seed"])
    read = read_sources(sources, model, **options, augment=augment)
    served = {task: 1.0 for source in read for task in source.tasks}  # also tasks that are validated in every stage
    return make_dataset(
        model, read, {**hparams["tasks"], **served}, hparams["max_sample_length"], seed=hparams["seed"]
    )


def step_sampler(samples: Samples, hparams: dict[str, Any], run_opts: dict[str, Any]) -> StepSampler:
    """Return the sampler of training batches.

    Its optimiser steps have `effective_batch_size` sequences or `effective_batch_labels` labels, or as many
    micro-batches per process as the run option `grad_accumulation_factor` says.

    Raises:
        ValueError: the recipe wants augmentation, and the samples were read without.
    """
    if hparams["augment"] is not None and all(maker.source.augment is None for maker in samples.makers):
        raise ValueError("augment: the script reads its training samples without it; read_samples(.., training=True)")
    fixed = run_opts.get("grad_accumulation_factor")
    wanted = EffectiveBatch(hparams["effective_batch_size"], hparams["effective_batch_labels"])
    names = [maker.source.name for maker in samples.makers]
    weights = [(hparams["sources"].get(name) or {}).get("weight", 1.0) for name in names]
    sampler = StepSampler(
        SampleDraws(samples.table, hparams["tasks"], source_weights=weights, seed=hparams["seed"]),
        max_batch_length=hparams["max_batch_length"],
        steps_per_epoch=hparams["steps_per_epoch"],
        wanted=wanted if fixed is None else EffectiveBatch(accumulated=fixed),
        label_cost=label_cost(hparams["model"]),
        packed=hparams["pack"],
    )
    if sb.utils.distributed.if_main_process():
        logger.info(sampler.described(dict(enumerate(names))))
    return sampler


def save_system(model: OmniLM, hparams: dict[str, Any]) -> None:
    """Save the trained model to the output folder as a checkpoint for `omnikit.load`."""
    weights = whole_weights(model)  # of all processes where they share the weights
    if sb.utils.distributed.if_main_process():
        checkpoint.save(model, hparams["output_folder"], weights=weights)
        print(f"saved to {hparams['output_folder']}")


def fixed_facts(hparams: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a training that, besides the parts, must not change when it is resumed."""
    return {
        "stage": hparams["stage"],
        "vocabulary": vocabulary_of(hparams["model"].llm.tokenizer),
        "tasks": sorted(task for task, weight in hparams["tasks"].items() if weight > 0),
        "trainable": sorted(hparams["trainable"]),
        "optimiser": _name_of(hparams["opt_class"]),
    }


def _name_of(built: Any) -> str:
    """Return the qualified name of a class or function, or of the one that a `functools.partial` wraps."""
    return getattr(getattr(built, "func", built), "__qualname__", str(built))


@contextmanager
def cache_of(hparams: dict[str, Any]) -> Iterator[None]:
    """Run a `with` block on the main process first, so that the other processes find the cache filled.

    The others wait for a file, not in a collective operation, which would end them after its time-out.
    """
    with first_process(Path(hparams["cache_folder"])) as first:
        if first and hparams["verify_cache"]:
            verify_cache(hparams["cache_folder"])
        yield


def _run_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return defaults of SpeechBrain's run options, given those of the command line."""
    on_gpu = torch.cuda.is_available() and given.get("device") != "cpu"
    by_steps = given.get("ckpt_interval_steps", 0) > 0  # SpeechBrain takes one of the two
    return {
        **precisions(on_gpu, given.get("precision")),
        "ckpt_interval_minutes": 0.0 if by_steps else 30.0,
        "distributed_backend": "nccl" if on_gpu else "gloo",
    }
