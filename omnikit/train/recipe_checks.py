"""Checks of the values in a training recipe, made before any part is built or file written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnikit.hparams.name_lookup import nearest
from omnikit.hparams.named_parts import AUGMENT, choices, pick
from omnikit.losses import NORMALIZATIONS
from omnikit.old_names import SOURCE_OPTIONS, refuse_old_keys
from omnikit.option_ranges import (
    COUNT,
    COUNT_OR_NONE,
    FROM_ZERO,
    NOT_NEGATIVE,
    PATH,
    PATH_OR_NONE,
    POSITIVE,
    SEED,
    THREADS,
    TRUE_OR_FALSE,
    OneOf,
    Range,
    check_ranges,
)
from omnikit.tasks import TASKS

RANGES = {
    **dict.fromkeys(("output_folder", "cache_folder"), PATH),
    "initial_weights": PATH_OR_NONE,
    "seed": SEED,
    "max_encode_hours": Range(0, null=True),
    "num_workers": Range(0, THREADS.high, whole=True, null=True),
    "stream_weights.text": NOT_NEGATIVE,
    "stream_weights.audio": NOT_NEGATIVE,
    "max_batch_length": COUNT,
    "effective_batch_size": COUNT_OR_NONE,
    "effective_batch_labels": COUNT_OR_NONE,
    "steps_per_epoch": COUNT,
    "log_steps": COUNT_OR_NONE,
    "max_sample_length": COUNT_OR_NONE,
    "peak_lr": POSITIVE,
    "min_lr": NOT_NEGATIVE,
    "warmup_steps": FROM_ZERO,
    "epochs.limit": COUNT,
    "validate_first": TRUE_OR_FALSE,
    "loss_normalization": OneOf(NORMALIZATIONS),
    "distributed": OneOf(("ddp", "fsdp")),
    "hang_timeout": POSITIVE,
    "compile_blocks": OneOf((True, False, None)),
    "activation_checkpointing": TRUE_OR_FALSE,
    "pack": TRUE_OR_FALSE,
}
"""Mapping from dotted keys of a training stage's recipe to their accepted ranges."""
SOURCE_RANGES = {
    "manifest": PATH,
    "answers": PATH_OR_NONE,
    "limit": COUNT_OR_NONE,
    "weight": POSITIVE,
    "decode": FROM_ZERO,
    "every_stage": TRUE_OR_FALSE,
    "without_held_out": Range(0, whole=True, null=True),
    "only_held_out": Range(0, whole=True, null=True),
    "mixed": Range(0, 1),
    "interrupted": Range(0, 1),
}
"""Mapping from options of a source to their accepted ranges."""

ENCODER_RANGES = {
    **dict.fromkeys(("output_folder", "cache_folder", "save_folder", "export_folder", "system_folder"), PATH),
    **dict.fromkeys(("initial_weights", "system"), PATH_OR_NONE),
    "seed": SEED,
    **dict.fromkeys(("batch_seconds", "lr"), POSITIVE),
    **dict.fromkeys(("num_buckets", "steps", "log_every", "epoch_counter.limit"), COUNT),
    **dict.fromkeys(("head_only_steps", "warmup_steps", "mask.time_masks", "mask.freq_masks"), FROM_ZERO),
    **dict.fromkeys(("weight_decay", "grad_clip", "ckpt_interval_minutes"), NOT_NEGATIVE),
}
"""Mapping from dotted keys of an encoder's CTC training recipe to their accepted ranges."""


def check_encoder(tree: Mapping[str, Any]) -> None:
    """Check the values of a recipe that trains an encoder by CTC.

    Raises:
        ValueError: a value of the wrong kind or outside its range.
    """
    refuse_old_keys(tree)
    check_ranges(tree, ENCODER_RANGES)
    check_augment(tree.get("augment"))


def check_stage(tree: Mapping[str, Any]) -> None:
    """Check the values of a training stage's recipe; passed to `omnikit.hparams.load_recipe`.

    Raises:
        ValueError: a value of the wrong kind or outside its range, or one that would have no effect.
    """
    refuse_old_keys(tree)
    check_ranges(tree, RANGES)
    for name in ("tasks", "stream_weights", "sources", "valid_sources"):
        check_mapping(name, tree.get(name, {}))
    check_optimizer(tree, "opt_class", "peak_lr")
    check_tasks(tree.get("tasks"))
    check_effective_batch(tree.get("effective_batch_size"), tree.get("effective_batch_labels"))
    for table in ("sources", "valid_sources"):
        check_sources(tree.get(table), table)
    check_wandb(tree.get("wandb"))
    check_augment(tree.get("augment"))
    weights = tree.get("stream_weights")
    if isinstance(weights, Mapping) and not any(weights.values()):
        raise ValueError("--stream_weights: all are 0, so there is nothing to learn from")
    if tree.get("trainable") == []:
        raise ValueError("--trainable []: names no part, so there is nothing to train")


def check_optimizer(tree: Mapping[str, Any], key: str, rate: str) -> None:
    """Raise a `ValueError` if the optimiser's own learning rate differs from the schedule's, which overrides it.

    Weight decay and epsilon of the optimiser are checked, too.

    Args:
        tree: the recipe's values.
        key: key of the optimiser, a mapping of options.
        rate: key of the schedule's peak learning rate.
    """
    options = tree.get(key)
    if not isinstance(options, Mapping):
        return
    if "lr" in options and options["lr"] != tree.get(rate):
        raise ValueError(f"--{key}.lr {options['lr']}: has no effect, the schedule sets the rate; use --{rate}")
    check_ranges(options, {"weight_decay": NOT_NEGATIVE, "eps": POSITIVE}, prefix=f"{key}.")


def check_mapping(name: str, value: Any) -> None:
    """Raise a `ValueError` if the value of an option that has options of its own is no mapping."""
    if not isinstance(value, Mapping):
        shown = "null" if value is None else value
        raise ValueError(f"--{name} {shown}: must be a mapping; set single keys by --{name}.KEY VALUE")


def check_wandb(options: Any) -> None:
    """Raise a `ValueError` if options of Weights & Biases are neither null, nor a text, nor a mapping."""
    if not (options is None or isinstance(options, Mapping) or (isinstance(options, str) and options)):
        raise ValueError(f"--wandb {options}: must be the name of a project, a mapping of options, or null")


def check_augment(augment: Any) -> None:
    """Raise a `ValueError` if `augment` names no file; effects that a recipe lists check themselves."""
    if isinstance(augment, str):
        pick(AUGMENT, augment)
    elif not (augment is None or isinstance(augment, Mapping)):
        raise ValueError(f"--augment {augment}: must be a name (choices: {', '.join(choices(AUGMENT))}) or null")


def check_tasks(tasks: Any) -> None:
    """Raise a `ValueError` if task weights name an unknown task, are negative, or are all 0."""
    if not isinstance(tasks, Mapping):
        return
    for name, weight in tasks.items():
        if name not in TASKS:
            raise ValueError(f"--tasks.{name}: no such task{nearest(name, TASKS)}")
        NOT_NEGATIVE.check(f"tasks.{name}", weight)
    if not any(tasks.values()):
        raise ValueError("--tasks: all weights are 0, so there is nothing to train")


def check_effective_batch(sequences: int | None, labels: int | None) -> None:
    """Raise a `ValueError` if the size of an optimiser step is given in sequences and in labels."""
    if sequences is not None and labels is not None:
        raise ValueError(
            f"--effective_batch_labels {labels}: effective_batch_size is {sequences}; set one of them to null"
        )


def check_sources(sources: Any, table: str) -> None:
    """Check the options of each source of a recipe; sources that are null are ignored."""
    for name, options in sources.items() if isinstance(sources, Mapping) else ():
        if options is not None:
            check_mapping(f"{table}.{name}", options)
            refuse_old_keys(options, SOURCE_OPTIONS, f"{table}.{name}.")
            check_ranges(options, SOURCE_RANGES, prefix=f"{table}.{name}.")
