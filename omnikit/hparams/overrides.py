"""Overrides: values that replace those of a YAML file, by dotted keys or names of parts; unknown keys are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Number
from pathlib import Path
from typing import Any

from omnikit.hparams.name_lookup import argument_names, nearest
from omnikit.hparams.yaml_tree import has_tag, read_tree, tag_of, walk
from omnikit.option_ranges import NOT_NEGATIVE, SEED, Range, as_whole, quoted

PICK = "!applyref:omnikit.hparams.pick"
_WHOLE = SEED
"""Widest range of whole numbers that options accept, that of seeds; narrower ranges are checked with each option."""


def as_overrides(tree: Mapping, settings: Mapping[str, Any], folder: Path, prefix: str = "") -> dict[str, Any]:
    """Convert settings such as `{"codec": "mimi", "codec.num_codebooks": 4}` to HyperPyYAML's nested overrides.

    Args:
        tree: the file that they apply to, from `read_tree`.
        settings: dotted keys and values; later ones take precedence.
        folder: folder of that file, from which its includes are read.
        prefix: text that stands before the keys in error messages.

    Raises:
        ValueError: the file does not have a key, or a value is not allowed there.
    """
    overrides: dict[str, Any] = {}
    for key, value in settings.items():
        _set(tree, key.split("."), value, prefix + key, folder, overrides)
    return overrides


def _set(tree: Mapping, keys: list[str], value: Any, flag: str, folder: Path, overrides: dict[str, Any]) -> None:
    key, *rest = keys
    value = value if rest else _in_kind(tree.get(key), value)
    added = _is_table(tree) and (key in overrides or (isinstance(value, Mapping) and not rest))
    if not added:
        _check_known(tree, key, flag, folder)
    node = tree.get(key, overrides.get(key) if added else None)
    if has_tag(node, PICK) and not rest and not isinstance(value, Mapping):
        rest = ["name"]  # `--codec mimi` chooses the part
    if rest:
        overrides[key] = overrides.get(key) or {}  # None: an earlier setting removed it
        _set(_inside(tree, node, flag), rest, value, flag, folder, overrides[key])
    elif isinstance(value, Mapping) and isinstance(node, Mapping):
        _check_tags(flag, value)
        for inner, inner_value in value.items():
            inner_keys = [key, *str(inner).split(".")]
            _set(tree, inner_keys, inner_value, f"{flag}.{inner}", folder, overrides)
    else:
        # an option of a part that is null in its file takes no mapping; one that is not there may
        _check_value(node, value, flag, null_is_single=key in tree and has_tag(tree, "!new:", "!name:"))
        overrides[key] = dict(value) if isinstance(value, Mapping) else value


class _Unknown(dict):
    """Overrides of a part's options, whose keys `pick` checks once the file of the part is known."""


def _inside(tree: Mapping, node: Any, flag: str) -> Mapping:
    if isinstance(node, Mapping):
        return node
    if node is None and (isinstance(tree, _Unknown) or has_tag(tree, PICK)):
        return _Unknown()
    raise ValueError(f"--{flag}: what stands before the last dot is a single value, it has no options")


def _is_table(node: Mapping) -> bool:
    """Return whether the keys of a mapping are names that users choose, such as those of `sources`.

    This is so if the mapping has no tag and all its values are mappings of options.
    """
    values = [value for value in node.values() if value is not None]
    plain = all(isinstance(value, Mapping) and not tag_of(value) for value in values)
    return plain and bool(values) and not tag_of(node)


def _check_known(tree: Mapping, key: str, flag: str, folder: Path) -> None:
    if has_tag(tree, PICK) and key == "part":
        raise ValueError(f"--{flag}: the kind of a part is fixed")
    if key in tree or isinstance(tree, _Unknown) or has_tag(tree, PICK):
        return
    known: set[str] | None = {str(name) for name in tree}
    if has_tag(tree, "!include:"):
        known |= {str(name) for name in read_tree(folder / tag_of(tree).partition(":")[2])}
    if has_tag(tree, "!new:", "!name:"):
        arguments = argument_names(tree, f"--{flag}")
        known = None if arguments is None else known | arguments
    if known is not None and key not in known:
        raise ValueError(f"--{flag}: no such option{nearest(key, known)}")


def _check_tags(flag: str, value: Any) -> None:
    """Refuse tags other than `!ref` in a value, since HyperPyYAML merges a tagged mapping and drops its tag."""
    for _, node in [("", value), *walk(value)]:
        if tag_of(node) not in ("", "!ref"):
            raise ValueError(f"--{flag}: the tag {tag_of(node)} belongs into the YAML file itself")


def _check_value(node: Any, value: Any, flag: str, *, null_is_single: bool = False) -> None:
    """Refuse an override whose type differs from that of the value in the file, which would fail late or never.

    Examples are `off` for a switch (a string, and so true) and a word for a number.
    """
    _check_tags(flag, value)
    if value is None or tag_of(value):
        return
    if isinstance(node, Mapping) and not has_tag(node, "!apply"):  # a function's result may be given instead
        inner = ", ".join(f"--{flag}.{key}" for key in node)
        how = f" (it is built by {tag_of(node)}, not chosen by name)" if tag_of(node) else ""
        raise ValueError(f"--{flag} {value}: has options of its own, set one of them{how}: {inner}")
    if isinstance(value, Mapping) and not tag_of(node) and (node is not None or null_is_single):
        raise ValueError(f"--{flag}: is a single value, it has no options")
    if isinstance(node, bool):
        if not isinstance(value, bool):
            raise ValueError(f"--{flag} {value}: must be true or false")
    elif isinstance(node, Number):
        _like(node).check(flag, value)
    elif isinstance(node, list) and not tag_of(node):
        _check_list(node, value, flag)
    elif _is_text(node) and not isinstance(value, str | list | Mapping):
        raise ValueError(f"--{flag} {value}: must be a text; {quoted(value)}")


def _in_kind(node: Any, value: Any) -> Any:
    """Return a value in which floats without a fraction, such as `1e6`, are whole numbers, unless they replace a float.

    So `--warmup_steps 1e3` and `--sources.a.limit 1e6` build the same as `1000` and `1000000`.
    """
    if isinstance(value, Mapping) and not tag_of(value):
        inner = node if isinstance(node, Mapping) else {}
        return {key: _in_kind(inner.get(key), each) for key, each in value.items()}
    if isinstance(value, list) and not tag_of(value):
        floats = isinstance(node, list) and any(isinstance(each, float) for each in node)
        return value if floats else [_in_kind(None, each) for each in value]
    return value if isinstance(node, float | str) else as_whole(value)


def _like(number: int | float) -> Range:
    """Return the range of numbers that may override a number in a file.

    A whole number is replaced by a whole one, a positive number by one that is not negative.
    """
    whole = isinstance(number, int)
    if number > 0:
        return _WHOLE if whole else NOT_NEGATIVE
    return Range(-_WHOLE.high, _WHOLE.high, whole=True) if whole else Range()


def _check_list(node: list, value: Any, flag: str) -> None:
    """Refuse an override of a list in the file that is not a list of the same kind.

    A list of numbers is replaced by a list of at least one number, a list of switches by a list of switches.
    """
    if not isinstance(value, list):
        raise ValueError(f"--{flag} {value}: must be a list, such as [{value}]")
    if node and all(isinstance(each, bool) for each in node):
        for each in value:
            _check_value(node[0], each, flag)
    elif node and all(isinstance(each, Number) for each in node):
        if not value:
            raise ValueError(f"--{flag} []: must hold a number at least")
        for each in value:
            Range().check(flag, each)


def _is_text(node: Any) -> bool:
    """Return whether a YAML value is a string, possibly with references in it, but not just a reference."""
    if has_tag(node, "!ref"):
        return not re.fullmatch(r"<[^<>]+>", str(getattr(node, "value", "")))
    return isinstance(node, str) and not tag_of(node)
