"""Limits on a YAML text that somebody else wrote: its length, depth, aliases and numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from omnikit.hparams.yaml_tree import yaml_problem
from omnikit.size_limits import check_count, is_count

MOST_BYTES = 2**16
"""Maximum size of a checkpoint's YAML file in bytes; real ones have some thousands."""
_MOST_NODES = 5_000
_DEEPEST = 32
_LARGEST = 2**31
_LONGEST_KEY = 80  # characters of a key that errors show
_KINDS = {"int": "whole number", "float": "number", "bool": "switch (true or false)"}


def bounded_nodes(text: str, source: str) -> Node:
    """Return the root of the nodes of a YAML text without building anything.

    Args:
        text: the YAML text.
        source: name of its file, for errors.

    Raises:
        ValueError: the text is not YAML, too long, nested too deeply, or has too many nodes once aliases are expanded.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{source}: has {len(text)} characters, more than {MOST_BYTES}")
    try:
        _check_events(text, source)
        root = YAML(typ="safe", pure=True).compose(text)
    except YAMLError as error:
        raise ValueError(f"{source}: {yaml_problem(error)}") from None
    if root is None:
        raise ValueError(f"{source}: must be a mapping (keys and values)")
    if _size(root, source, {}) > _MOST_NODES:
        raise ValueError(f"{source}: has more than {_MOST_NODES} entries once its aliases are written out")
    return root


def check_numbers(root: Node, source: str) -> None:
    """Refuse invalid numbers and switches, and whole numbers that no network has.

    Raises:
        ValueError: a value is invalid, a count of layers, codebooks or the like is above
            `omnikit.size_limits.MOST_COUNTED`, or a whole number is above 2^31.
    """
    constructor = YAML(typ="safe", pure=True).constructor
    for path, node in scalars(root):
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if kind not in _KINDS:
            continue
        value = _plain(constructor, node, kind, f"{source}: {path}")
        if kind == "int" and abs(value) > _LARGEST:
            raise ValueError(f"{source}: {path} {value}: must be at most {_LARGEST}")
        if kind == "int" and is_count(path.rpartition(".")[2]):
            check_count(f"{source}: {path}", value)


def scalars(root: Node, skip: Callable[[Node], bool] = lambda node: False) -> Iterator[tuple[str, ScalarNode]]:
    """Yield each value of a tree of YAML nodes with its dotted path, once for every place at which it stands.

    Mappings and lists that stand at several places are visited once.

    Args:
        root: root of the tree.
        skip: returns True for nodes to leave out, with everything that is reached through them alone.
    """
    seen: set[int] = set()

    def walk(node: Node, path: str) -> Iterator[tuple[str, ScalarNode]]:
        if isinstance(node, ScalarNode):
            yield path, node
        elif id(node) not in seen and not skip(node):
            seen.add(id(node))
            for name, child in _children(node):
                yield from walk(child, f"{path}.{name}" if path else name)

    return walk(root, "")


def _children(node: Node) -> Iterator[tuple[str, Node]]:
    pairs = node.value if isinstance(node, MappingNode) else enumerate(node.value)
    for key, child in pairs:
        name = key.value if isinstance(key, ScalarNode) else key if isinstance(key, int) else "?"
        yield str(name)[:_LONGEST_KEY], child


def _check_events(text: str, source: str) -> None:
    """Refuse a YAML text with too many levels or entries, before anything recurses into its nodes.

    The parser itself has an explicit stack and does not recurse.
    """
    depth = 0
    for number, event in enumerate(YAML(typ="safe", pure=True).parse(text)):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"{source}: line {event.start_mark.line + 1}: nested more than {_DEEPEST} deep")
        if number > 2 * _MOST_NODES:
            raise ValueError(f"{source}: has more than {_MOST_NODES} entries")


def _size(node: Node, source: str, sizes: dict[int, int | None]) -> int:
    """Return the number of YAML nodes that a text has once its aliases are expanded."""
    if id(node) not in sizes:
        sizes[id(node)] = None  # marks a node that is being counted
        children = node.value if not isinstance(node, ScalarNode) else []
        pairs = isinstance(node, MappingNode)
        flat = [child for pair in children for child in pair] if pairs else children
        sizes[id(node)] = 1 + sum(_size(child, source, sizes) for child in flat)
    size = sizes[id(node)]
    if size is None:
        raise ValueError(f"{source}: line {node.start_mark.line + 1}: an entry contains itself")
    return size


def _plain(constructor: SafeConstructor, node: ScalarNode, kind: str, what: str) -> Any:
    """Return the value of a scalar YAML node, refusing text that is not of the type that its tag (`!!float`) claims."""
    try:
        return getattr(constructor, f"construct_yaml_{kind}")(node)
    except (ValueError, KeyError):
        raise ValueError(f"{what} {node.value[:40]}: is no {_KINDS[kind]}") from None
