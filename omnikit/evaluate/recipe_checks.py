"""Check the values of an evaluation's recipe before anything is built or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnikit.old_names import refuse_old_keys
from omnikit.option_ranges import (
    COUNT,
    COUNT_OR_NONE,
    FROM_ZERO,
    PATH,
    PATH_OR_NONE,
    THREADS,
    Each,
    Items,
    Range,
    Regex,
    check_ranges,
)

RANGES = {
    **dict.fromkeys(("output_folder", "cache_folder", "manifest", "normalizer", "judge", "judge_normalizer"), PATH),
    **dict.fromkeys(("checkpoint", "baseline", "baseline_weights", "grammar_file", "judge_weights"), PATH_OR_NONE),
    **dict.fromkeys(("mos", "mos_source", "judged_split", "training", "language"), PATH_OR_NONE),
    **dict.fromkeys(("judge_url", "judge_model", "judge_key", "baseline_llm", "versa"), PATH_OR_NONE),
    "batch_size": COUNT,
    "limit": COUNT_OR_NONE,
    "judge_limit": COUNT_OR_NONE,
    "judge_threads": COUNT,
    "baseline_tokens": COUNT,
    **dict.fromkeys(("keep_wavs", "speed_sentences", "speed_questions"), FROM_ZERO),
    "speed_threads": THREADS,
    "ids": Regex(),
    "groups": Items({"name": PATH, "ids": Regex()}),
    "codecs": Items({"name": PATH}),
    "follow_ups": Regex(null=True),
    "typed": Range(0, 1),
    "crop": Each(Range(0, 1)),
    "about_answer": Items({"question": Regex(), "answer": PATH}),
}
"""Mapping from the keys of an evaluation's recipe to the values that each of them accepts."""


def check_evaluation(tree: Mapping[str, Any]) -> None:
    """Check the keys and values of an evaluation's recipe; for `omnikit.hparams.load_recipe`.

    Raises:
        ValueError: a key has been renamed, or a value has the wrong type or is outside its range.
    """
    refuse_old_keys(tree)
    check_ranges(tree, RANGES)
    for key in ("splits", "sets", "tasks"):
        value = tree.get(key)
        if value is not None and not isinstance(value, list):
            raise ValueError(f"--{key} {value}: must be a list, such as [{value}]")
