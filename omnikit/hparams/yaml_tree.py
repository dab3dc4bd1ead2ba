"""HyperPyYAML text as a tree that keeps its tags, with nothing built and no references resolved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import ruamel.yaml
from ruamel.yaml.error import YAMLError

from omnikit.errors import one_line
from omnikit.files import read_text

INCLUDE = "!include:"
"""Prefix of the YAML tag that includes another file."""


def read_tree(path: str | Path) -> Mapping:
    """Read a YAML file as a mapping that keeps its tags.

    Raises:
        ValueError: the file is missing, not YAML, has no mapping at the top, or includes another file by `<<`.
    """
    tree = open_tree(path)
    if merged(tree):
        raise ValueError(f"{path}: only a recipe may include another file (<<)")
    return tree


def open_tree(path: str | Path) -> Mapping:
    """Read a YAML file as a mapping that keeps its tags, and allow it to include another file, see `merged`.

    Raises:
        ValueError: the file is missing, not YAML, or has no mapping at the top.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    return read_tree_text(read_text(path), str(path))


def merged(tree: Mapping) -> list[Mapping]:
    """Return the YAML nodes behind the merge key `<<` of a tree, with their tags and without reading included files."""
    return list(tree.merge)


def read_tree_text(text: str, source: str) -> Mapping:
    """Read YAML text as a mapping that keeps its tags; `source` names the text in errors.

    Raises:
        ValueError: the text is not YAML, or has no mapping at the top.
    """
    try:
        tree = ruamel.yaml.YAML().load(text)
    except YAMLError as error:
        raise ValueError(f"{source}: {yaml_problem(error)}") from None
    if not isinstance(tree, Mapping):
        raise ValueError(f"{source}: must be a mapping (keys and values)")
    return tree


def write_tree(tree: Mapping) -> str:
    """Return the YAML text of a tree, the inverse of `read_tree_text`."""
    stream = StringIO()
    ruamel.yaml.YAML().dump(tree, stream)
    return stream.getvalue()


def tag_of(node: Any) -> str:
    """Return the tag of a YAML node, such as `!new:torch.nn.Linear`; empty if it has none."""
    return str(getattr(getattr(node, "tag", None), "value", None) or "")


def has_tag(node: Any, *prefixes: str) -> bool:
    return tag_of(node).startswith(prefixes)


def dotted_name(node: Any) -> str:
    """Return the dotted name in the tag of a YAML node: `torch.nn.Linear` for `!new:torch.nn.Linear`."""
    return tag_of(node).partition(":")[2]


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every YAML node below `node` with its dotted path, parents first."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        name = f"{path}.{key}" if path else str(key)
        yield name, child
        yield from walk(child, name)


def yaml_problem(error: YAMLError) -> str:
    """Return the message and position of a YAML error in one line, without the source text that it quotes."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + one_line(getattr(error, "problem", None) or error, None)
