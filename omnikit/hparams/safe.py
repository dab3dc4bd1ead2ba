"""Reading a YAML file that came with a checkpoint, perhaps from a stranger.

HyperPyYAML calls any function that a file names, some of them already while it resolves references, and reads text in
parentheses with a loader that runs code. So such a file is not given to it: the raw nodes are checked against what a
saved model consists of, and those same nodes are then built here.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from omnikit.errors import missing_package
from omnikit.hparams.tree import one_line

PART_MODULES = tuple(
    f"omnikit.{name}" for name in ("encoders", "adapters", "llms", "codecs", "patterns", "strategies", "model")
)
"""Where the classes of a saved model may be defined: these modules and what is below them."""
_PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null"))


def safe_load(text: str, source: str, allow: tuple[str, ...] = ()) -> dict[str, Any]:
    """Build the objects of a checkpoint's YAML text.

    Args:
        text: plain values, and `!new:` / `!name:` of classes in `PART_MODULES`; references are resolved already.
        source: the file's name, for errors.
        allow: further modules whose classes may be built.

    Raises:
        ValueError: anything else in the file, named; nothing has been built then.
    """
    check_safe(text, source, allow)
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        return yaml.load(text)
    except YAMLError as error:
        raise ValueError(f"{source}: {one_line(error)}") from None


def check_safe(text: str, source: str, allow: tuple[str, ...] = ()) -> None:
    """Refuse a YAML text that `safe_load` would not build."""
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except YAMLError as error:
        raise ValueError(f"{source}: {one_line(error)}") from None
    if not isinstance(root, MappingNode):
        raise ValueError(f"{source}: must be a mapping (keys and values)")
    for node in _nodes(root, set()):
        tag = str(node.tag)
        if tag in _PLAIN or (tag == "!tuple" and isinstance(node, ScalarNode)):
            continue
        kind, _, name = tag.partition(":")
        if kind not in ("!new", "!name"):
            raise ValueError(f"{source}: the tag {tag} is refused in a checkpoint (allowed: !new:, !name:)")
        if isinstance(node, SequenceNode) or (isinstance(node, ScalarNode) and node.value):
            raise ValueError(f"{source}: {tag} must have named options")
        _allowed_class(name, tag, source, (*PART_MODULES, *allow))


def _allowed_class(name: str, tag: str, source: str, modules: tuple[str, ...]) -> type:
    """The class, if it is defined where parts are (and not just imported there)."""
    module, _, attribute = name.rpartition(".")
    inside = any(module == allowed or module.startswith(allowed + ".") for allowed in modules)
    if not inside or not re.fullmatch(r"\w+(\.\w+)*", name):
        raise ValueError(f"{source}: {tag} is refused in a checkpoint (allowed: classes in {', '.join(modules)})")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"{source}: {tag} {missing_package(error.name)}") from None
    if not inspect.isclass(found) or found.__module__ != module:
        raise ValueError(f"{source}: {tag} is refused in a checkpoint: no class of that name is defined there")
    return found


def _nodes(node: Node, seen: set[int]) -> Iterator[Node]:
    if id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if isinstance(node, MappingNode):
        for pair in node.value:
            for child in pair:
                yield from _nodes(child, seen)
    elif isinstance(node, SequenceNode):
        for child in node.value:
            yield from _nodes(child, seen)


class _Constructor(SafeConstructor):
    """Plain values as usual, the two tags of a checked file, and tuples `(1, 2)`."""

    def construct_scalar(self, node: ScalarNode) -> Any:
        value = super().construct_scalar(node)
        return _tuple(value) if isinstance(value, str) and node.style is None else value


def _tuple(text: str) -> Any:
    """HyperPyYAML's tuples; anything but `(..)` stays as it is."""
    if not re.fullmatch(r"\(.*\)", text):
        return text
    return tuple(YAML(typ="safe", pure=True).load(f"[{text[1:-1]}]"))


def _construct(constructor: _Constructor, suffix: str, node: Node) -> Any:
    module, _, attribute = suffix.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    options = constructor.construct_mapping(node, deep=True) if isinstance(node, MappingNode) else {}
    if str(node.tag).startswith("!name:"):
        return functools.partial(found, **options)
    try:
        return found(**options)
    except TypeError as error:
        raise ValueError(f"checkpoint: {suffix} cannot be built from the options in its YAML ({error})") from None


_Constructor.add_multi_constructor("!new:", _construct)
_Constructor.add_multi_constructor("!name:", _construct)
# once HyperPyYAML has loaded a file, every ruamel.yaml loader of the process gives `(..)` this tag
_Constructor.add_constructor("!tuple", _Constructor.construct_scalar)
