"""Flags for all parts of a system at once (`--pretrained false`, `--size tiny`), and the names of the chosen parts.

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
NAMES = "part_names"
"""Key of the mapping from kinds to names of parts, in a resolved recipe and in a checkpoint."""
CHOICE = "choice"
"""Key of a recipe for the choices made by flags, such as `-codec=mimi-size=tiny`, which name its output folder."""
_PUBLISHED_KINDS = ("encoder", "llm", "codec")


def spread(tree: Mapping, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings in which flags for all parts are replaced by options of the parts that have them.

    A setting that names a part's option takes precedence over the flag, and a key of the file with the name of such a
    flag hides it.

    Args:
        tree: the file, from `read_tree`.
        settings: dotted keys and values; later ones take precedence.
        folder: folder of the file.

    Raises:
        ValueError: a setting is refused, see `as_overrides`, or the value of a flag is not allowed.
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
        options = _flag_options({**part, **tree[kind], **given}, flags, chosen="name" in given)
        meant |= {f"{kind}.{key}": value for key, value in options.items()}
    return {**meant, **own}


def _flag_options(part: Mapping, flags: Mapping[str, Any], *, chosen: bool) -> dict[str, Any]:
    """Return the options that flags for all parts (`--size`, `--pretrained`) set in one part.

    Args:
        part: options of the part.
        flags: flags for all parts that are given.
        chosen: whether the part is chosen by name, and not just the one in the file.
    """
    options: dict[str, Any] = {}
    if SIZE in flags and part.get(SIZE) in SIZES:
        options[SIZE] = flags[SIZE]
    if not flags.get(PRETRAINED, True) and "weights" in part:
        options["weights"] = None
    # the tokenizer of the backbone in the recipe itself may be a local file that comes with the recipe, and is kept
    if not flags.get(PRETRAINED, True) and "tokenizer" in part and (chosen or is_hub_id(part["tokenizer"])):
        options["tokenizer"] = "bytes"
    return options


def part_names(tree: Mapping, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of each part by kind, for a recipe file and its overrides in HyperPyYAML's form."""
    names = {}
    for kind, name in _names(tree, overrides).items():
        size = {**tree[kind], **(overrides.get(kind) or {})}.get(SIZE)
        names[kind] = _short(name) + (f" ({TINY})" if size == TINY else "")
    return names


def _flags_of(tree: Mapping) -> list[str]:
    """Return the flags for all parts that a recipe file supports: it has parts, and no key with the flag's name."""
    return [name for name in (PRETRAINED, SIZE) if name not in tree] if set(_PUBLISHED_KINDS) & set(tree) else []


def _check(flags: Mapping[str, Any]) -> None:
    if not isinstance(flags.get(PRETRAINED, True), bool):
        raise ValueError(f"--{PRETRAINED} {flags[PRETRAINED]}: must be true or false")
    if flags.get(SIZE, TINY) not in SIZES:
        raise ValueError(f"--{SIZE} {flags[SIZE]}: no such size (choices: {', '.join(SIZES)})")


def _names(tree: Mapping, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of the chosen part file by kind.

    A part that the recipe file itself defines has the name that the file gives it under `NAMES`, or that of its class.
    """
    given = tree.get(NAMES) or {}
    return {
        kind: str({**tree[kind], **(overrides.get(kind) or {})}["name"])
        if has_tag(tree[kind], PICK)
        else given.get(kind, dotted_name(tree[kind]))
        for kind in KINDS
        if isinstance(tree.get(kind), Mapping) and has_tag(tree[kind], PICK, "!new:", "!name:")
    }


def _choice(tree: Mapping, names: Mapping[str, str], flags: Mapping[str, Any]) -> str:
    """Return the flags whose values differ from the recipe file as one text, such as `-codec=mimi-size=tiny`."""
    chosen = {kind: _short(name) for kind, name in names.items() if name != _names(tree, {})[kind]}
    if SIZE in flags:
        chosen[SIZE] = flags[SIZE]
    return "".join(f"-{key}={value}" for key, value in chosen.items())


def _short(name: str) -> str:
    """Return the name of a part, which for the path of a part file is the file's name without suffix."""
    return Path(name).stem if name.endswith(".yaml") else name
