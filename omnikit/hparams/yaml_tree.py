"""HyperPyYAML text as a tree whose tags are kept, nothing built and nothing resolved."""

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
"""What the tag of an included file begins with."""


def read_tree(path: str | Path) -> Mapping:
    """A YAML file as a mapping.

    Raises:
        ValueError: no such file, not YAML, no mapping at the top, or one that takes in another file.
    """
    tree = open_tree(path)
    if merged(tree):
        raise ValueError(f"{path}: only a recipe may take in another file (<<)")
    return tree


def open_tree(path: str | Path) -> Mapping:
    """As `read_tree`, for a file that may take in another one, see `merged`."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    return read_tree_text(read_text(path), str(path))


def merged(tree: Mapping) -> list[Mapping]:
    """Return the nodes behind the merge key `<<` of a tree, with their tags; their entries are not looked at."""
    return list(tree.merge)


def read_tree_text(text: str, source: str) -> Mapping:
    """YAML text as a mapping; `source` names it in errors."""
    try:
        tree = ruamel.yaml.YAML().load(text)
    except YAMLError as error:
        raise ValueError(f"{source}: {yaml_problem(error)}") from None
    if not isinstance(tree, Mapping):
        raise ValueError(f"{source}: must be a mapping (keys and values)")
    return tree


def write_tree(tree: Mapping) -> str:
    """The text of a tree, the inverse of `read_tree_text`."""
    stream = StringIO()
    ruamel.yaml.YAML().dump(tree, stream)
    return stream.getvalue()


def tag_of(node: Any) -> str:
    """A node's own tag such as `!new:torch.nn.Linear`; empty where it has none."""
    return str(getattr(getattr(node, "tag", None), "value", None) or "")


def has_tag(node: Any, *prefixes: str) -> bool:
    return tag_of(node).startswith(prefixes)


def dotted_name(node: Any) -> str:
    """`torch.nn.Linear` of a node with the tag `!new:torch.nn.Linear`."""
    return tag_of(node).partition(":")[2]


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every node below `node` with its dotted path, parents first."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        name = f"{path}.{key}" if path else str(key)
        yield name, child
        yield from walk(child, name)


def yaml_problem(error: YAMLError) -> str:
    """Return in one line what a YAML error says and where, without the quoted source."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + one_line(getattr(error, "problem", None) or error, None)
