"""Flags for all parts of a system at once (`--pretrained false`, `--size tiny`), and what the parts are called.

Guide: docs/hparams.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnikit.hparams.named_parts import KINDS, pick
from omnikit.hparams.overrides import PICK, as_overrides
from omnikit.hparams.yaml_tree import dotted_name, has_tag
from omnikit.hub import is_hub_id
from omnikit.part_sizes import SIZES, TINY

PRETRAINED, SIZE = "pretrained", "size"
CHOICE = "choice"
"""A recipe that has this key finds there what flags chose, such as `-codec=mimi-size=tiny`, to name its folder by."""
_PUBLISHED_KINDS = ("encoder", "llm", "codec")


def spread(tree: Mapping, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a file, with flags for all parts replaced by options of those parts that have them.

    A setting that names a part's option wins over the flag, and a file's own key of the same name is no such flag.

    Args:
        tree: the file, from `read_tree`.
        settings: dotted keys and values; a later one wins.
        folder: where the file lies.

    Raises:
        ValueError: see `as_overrides`; or a flag's value that cannot be.
    """
    flags = {name: settings[name] for name in _flags_of(tree) if name in settings}
    own = {key: value for key, value in settings.items() if key not in flags}
    _check(flags)
    overrides = as_overrides(tree, own, folder) if flags or CHOICE in tree else {}
    names = _names(tree, overrides)
    meant = {CHOICE: _choice(tree, names, flags)} if CHOICE in tree else {}
    for kind, name in names.items() if flags else ():
        part = pick(kind, name) if has_tag(tree[kind], PICK) else {}
        given = overrides.get(kind) or {}
        options = _meant({**part, **tree[kind], **given}, flags, chosen="name" in given)
        meant |= {f"{kind}.{key}": value for key, value in options.items()}
    return {**meant, **own}


def _meant(part: Mapping, flags: Mapping[str, Any], *, chosen: bool) -> dict[str, Any]:
    """What the flags mean for a part with these options; `chosen`: by name, and not just the file's own."""
    options: dict[str, Any] = {}
    if SIZE in flags and part.get(SIZE) in SIZES:
        options[SIZE] = flags[SIZE]
    if not flags.get(PRETRAINED, True) and "weights" in part:
        options["weights"] = None
    # the tokenizer of a recipe's own backbone may well be a file that comes with it
    if not flags.get(PRETRAINED, True) and "tokenizer" in part and (chosen or is_hub_id(part["tokenizer"])):
        options["tokenizer"] = "bytes"
    return options


def part_names(tree: Mapping, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Kind -> what its part is called, in a file with its overrides in HyperPyYAML's form."""
    names = {}
    for kind, name in _names(tree, overrides).items():
        size = {**tree[kind], **(overrides.get(kind) or {})}.get(SIZE)
        names[kind] = _short(name) + (f" ({TINY})" if size == TINY else "")
    return names


def _flags_of(tree: Mapping) -> list[str]:
    """The flags that a file knows: those that its own keys do not hide, where there are parts that they can mean."""
    return [name for name in (PRETRAINED, SIZE) if name not in tree] if set(_PUBLISHED_KINDS) & set(tree) else []


def _check(flags: Mapping[str, Any]) -> None:
    if not isinstance(flags.get(PRETRAINED, True), bool):
        raise ValueError(f"--{PRETRAINED} {flags[PRETRAINED]}: must be true or false")
    if flags.get(SIZE, TINY) not in SIZES:
        raise ValueError(f"--{SIZE} {flags[SIZE]}: no such size (choices: {', '.join(SIZES)})")


def _names(tree: Mapping, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Kind -> name of the chosen part file, or the class that stands in the file itself."""
    return {
        kind: str({**tree[kind], **(overrides.get(kind) or {})}["name"])
        if has_tag(tree[kind], PICK)
        else dotted_name(tree[kind])
        for kind in KINDS
        if isinstance(tree.get(kind), Mapping) and has_tag(tree[kind], PICK, "!new:", "!name:")
    }


def _choice(tree: Mapping, names: Mapping[str, str], flags: Mapping[str, Any]) -> str:
    """What flags chose and the file does not have by itself: `-codec=mimi-size=tiny`."""
    chosen = {kind: _short(name) for kind, name in names.items() if name != _names(tree, {})[kind]}
    if SIZE in flags:
        chosen[SIZE] = flags[SIZE]
    return "".join(f"-{key}={value}" for key, value in chosen.items())


def _short(name: str) -> str:
    """A part file of one's own is called by its name alone."""
    return Path(name).stem if name.endswith(".yaml") else name
