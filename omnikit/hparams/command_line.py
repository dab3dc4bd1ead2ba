"""Parser of a training script's arguments: `train.py FILE.yaml [MORE.yaml ..] [--key value | --key=value | --flag ..]`.

SpeechBrain's own parser accepts abbreviations (`--test` would be taken for `--test_only`), splits values at `=` and
does not know dotted keys, so its run options are recognised here by their exact names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

import ruamel.yaml
from ruamel.yaml.error import YAMLError

from omnikit.hparams.include import read_recipe
from omnikit.hparams.yaml_tree import read_tree, yaml_problem
from omnikit.option_ranges import COUNT, FROM_ZERO, Range, whole_number
from omnikit.torchrun import check_device, own_device

_RUN_RANGES = {
    **dict.fromkeys(("debug_batches", "debug_epochs", "grad_accumulation_factor", "optimizer_step_limit"), COUNT),
    **dict.fromkeys(("profile_warmup", "profile_steps"), FROM_ZERO),
    "nonfinite_patience": COUNT,
    **dict.fromkeys(("ckpt_interval_minutes", "max_grad_norm"), Range()),  # 0 or less: no checkpoints, no clipping
}
"""Mapping from SpeechBrain's numeric run options to the numbers that they accept."""
USAGE = "usage: train.py FILE.yaml [MORE.yaml ..] [--key value ..]"


def split_command_line(argv: list[str]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Split a training script's arguments into the YAML file, SpeechBrain's run options and overrides by dotted key.

    Further YAML files hold overrides; flags take precedence over them. A switch, which is a key of the recipe with the
    value `true` or `false`, may stand without a value and means `true` then.

    Args:
        argv: arguments without the script's name.

    Raises:
        ValueError: there is no YAML file, a stray word, a flag without a value, or a value that its option does not
            accept.
    """
    options = _run_option_types()
    files: list[str] = []
    run_opts: dict[str, Any] = {}
    flags: dict[str, Any] = {}
    bare: list[str] = []
    for flag, text in _tokens(argv, flags={name for name, kind in options.items() if kind is bool}):
        if flag is None:
            files.append(_yaml_file(text))
        elif flag in options:
            run_opts[flag] = _run_option(flag, text, options[flag])
        elif text is None:
            bare.append(flag)
        else:
            _put(flags, flag, parse_value(flag, text))
    if not files:
        raise ValueError(f"no YAML file given; {USAGE}")
    for flag in bare:
        _put(flags, flag, _switched_on(flag, read_recipe(files[0])))
    overrides: dict[str, Any] = {}
    for settings in (*map(read_tree, files[1:]), flags):
        for key, value in settings.items():
            _put(overrides, key, value)
    return files[0], run_opts, overrides


def read_settings(words: list[str]) -> dict[str, Any]:
    """Parse arguments `--key value ..` into dotted keys and values, without YAML files and run options.

    Raises:
        ValueError: a stray word, or a flag without a value.
    """
    settings = {}
    for flag, text in _tokens(words, flags=set()):
        if flag is None:
            raise ValueError(f"{text}: not a flag; parts and options are given as --key value")
        settings[flag] = parse_value(flag, text)
    return settings


def parse_value(flag: str, text: str | None) -> Any:
    """Return the value that YAML reads from the text after a flag: `3`, `1e-4`, `true`, `null`, `[1, 2]`, `a/b=c`.

    Raises:
        ValueError: there is no text, or it is not YAML.
    """
    if text is None:
        raise _without_value(flag)
    try:
        return ruamel.yaml.YAML().load(text) if text else ""
    except YAMLError as error:
        raise ValueError(f"--{flag} {text}: not a YAML value ({yaml_problem(error)}); quote it: \"'{text}'\"") from None


def _switched_on(flag: str, recipe: Mapping[str, Any]) -> bool:
    if not isinstance(recipe.get(flag), bool):
        raise _without_value(flag)
    return True


def _without_value(flag: str) -> ValueError:
    return ValueError(f"--{flag}: a value is missing")


def _tokens(argv: list[str], flags: set[str]) -> Iterator[tuple[str | None, str | None]]:
    """Yield the (flag, value) pairs of a command line: flag None for a stray word, value None for a lone flag."""
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            yield None, word
            continue
        flag, equals, value = word[2:].partition("=")
        if not equals:
            takes_next = bool(words) and not words[0].startswith("--") and flag not in flags
            value = words.pop(0) if takes_next else None
        yield flag, value


def _yaml_file(word: str) -> str:
    if not word.endswith((".yaml", ".yml")):
        raise ValueError(f"{word}: neither a flag nor a YAML file; {USAGE}")
    return word


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set an option by its key and move it to the end, since later settings take precedence; mappings are merged."""
    old = settings.pop(key, None)
    if isinstance(old, Mapping) and isinstance(value, Mapping):
        merged = dict(old)
        for inner, inner_value in value.items():
            _put(merged, inner, inner_value)
        value = merged
    settings[key] = value


def _run_option_types() -> dict[str, Any]:
    """Return the types of SpeechBrain's run options that may stand on a command line, by name."""
    from speechbrain.utils.run_opts import HELP_TEXTS, RunOptions  # only training needs speechbrain

    # SpeechBrain declares whole minutes, but compares them with fractions of minutes
    hints = {**get_type_hints(RunOptions), "ckpt_interval_minutes": float}
    names = [name for name in hints if name in HELP_TEXTS or name.endswith("module_keys")]
    return {name: _without_none(hints[name]) for name in names}


def _without_none(kind: Any) -> Any:
    """Return a type annotation without None, such as `int` for `Optional[int]`."""
    inner = get_args(kind)
    return next(k for k in inner if k is not type(None)) if type(None) in inner else kind


def _run_option(flag: str, text: str | None, kind: Any) -> Any:
    if kind is bool:
        if text not in (None, "true", "True", "false", "False"):
            raise ValueError(f"--{flag}={text}: must be true or false")
        return text is None or text.lower() == "true"
    if text is None:
        raise _without_value(flag)
    if kind in (int, float, str):
        try:
            value = whole_number(text) if kind is int else kind(text)
        except ValueError:
            raise ValueError(f"--{flag} {text}: must be {'a whole number' if kind is int else 'a number'}") from None
        if flag in _RUN_RANGES:
            _RUN_RANGES[flag].check(flag, value)
        if flag == "device":
            check_device(own_device(value))
        return value
    if kind == list[str]:
        return text.split(",")
    allowed = get_args(kind)
    if text not in allowed:
        raise ValueError(f"--{flag} {text}: unknown value (choices: {', '.join(map(str, allowed))})")
    return text
