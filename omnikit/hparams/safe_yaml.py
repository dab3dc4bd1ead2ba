"""Safe reading of a YAML file that came with a checkpoint, perhaps from a stranger.

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

from omnikit.errors import missing_package, one_line
from omnikit.hparams.recipe import NAMES
from omnikit.hparams.yaml_limits import bounded_nodes, check_numbers, scalars
from omnikit.hparams.yaml_tree import yaml_problem
from omnikit.public_weights import FINGERPRINT, KINDS, NAME
from omnikit.public_weights import KEY as PUBLIC

PART_MODULES = tuple(
    f"omnikit.{name}" for name in ("encoders", "adapters", "llms", "codecs", "patterns", "strategies", "model")
)
"""Names of the modules in which, or below which, the classes of a saved model may be defined."""
_PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null"))
_TEXT, _NULL, _TUPLE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null", "!tuple"
TOKENIZER = "tokenizer"
_READ = ("weights", TOKENIZER, "path")
"""Options whose value names something to be read, even if it is not a path."""
_PLACE = re.compile(r"[/\\]|^~|^\.\.?$")


def safe_load(text: str, source: str, allow: tuple[str, ...] = ()) -> dict[str, Any]:
    """Build the objects of a checkpoint's YAML text, refusing anything that a saved model does not consist of.

    Args:
        text: plain values, and `!new:` / `!name:` of classes in `PART_MODULES`, with references resolved.
        source: name of the file, for errors.
        allow: further modules whose classes may be built.

    Raises:
        ValueError: the file holds anything else; the message names it, and nothing has been built.
    """
    return construct(check_safe(text, source, allow), source)


def check_safe(text: str, source: str, allow: tuple[str, ...] = ()) -> MappingNode:
    """Refuse a YAML text that `safe_load` would not build.

    Returns:
        Root of its nodes, for `construct`.
    """
    root = check_bounds(text, source)
    for node in _nodes(root, set()):
        _check_tag(node, source, (*PART_MODULES, *allow))
    tokenizer = tokenizer_node(root)
    for path, node in scalars(root, skip=functools.partial(_is_of, modules=allow)):
        option = path.rpartition(".")[2]
        if path.startswith(f"{PUBLIC}."):  # names of published weights, which are checked below
            continue
        if node is not tokenizer or option != TOKENIZER:
            _check_place(path, option, node, source)
    return root


def check_bounds(text: str, source: str) -> MappingNode:
    """Refuse a YAML text that is too long, too deep, or has numbers that no network has, whatever classes it names.

    Names of parts that are not a mapping of texts, and public weights without name and fingerprint, are refused, too.

    Returns:
        Root of its nodes.
    """
    root = bounded_nodes(text, source)
    if not isinstance(root, MappingNode):
        raise ValueError(f"{source}: must be a mapping (keys and values)")
    check_numbers(root, source)
    names = _entry(root, NAMES)
    if names is not None and not (
        isinstance(names, MappingNode) and all(value.tag == _TEXT for _, value in names.value)
    ):
        raise ValueError(f"{source}: {NAMES} must be a mapping of kinds of parts to names")
    _check_public(root, source)
    return root


def _check_public(root: MappingNode, source: str) -> None:
    """Refuse public weights that are not named as `{encoder: {name: base, fingerprint: 64 hex digits}}`."""
    found = _entry(root, PUBLIC)
    if found is None:
        return
    forms = {"name": NAME, "fingerprint": FINGERPRINT}
    for kind, entry in found.value if isinstance(found, MappingNode) else ((None, found),):
        values = {key.value: node for key, node in entry.value} if isinstance(entry, MappingNode) else {}
        good = kind is not None and kind.value in KINDS and values.keys() == forms.keys()
        if not good or not all(
            node.tag == _TEXT and forms[key].fullmatch(node.value) is not None for key, node in values.items()
        ):
            form = "{name: .., fingerprint: 64 hex digits}"
            raise ValueError(f"{source}: {PUBLIC} must be a mapping of {', '.join(KINDS)} to {form}")


def construct(root: MappingNode, source: str) -> dict[str, Any]:
    """Build the objects that checked YAML nodes from `check_safe` describe; each call builds new ones.

    Raises:
        ValueError: a class refuses its options.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        return yaml.constructor.construct_document(root)
    except YAMLError as error:
        raise ValueError(f"{source}: {yaml_problem(error)}") from None


def tokenizer_node(root: MappingNode) -> ScalarNode | None:
    """Return the YAML node with the value of `llm.tokenizer`, the only option of a checkpoint that names a file."""
    llm = _entry(root, "llm")
    found = _entry(llm, TOKENIZER) if isinstance(llm, MappingNode) else None
    return found if isinstance(found, ScalarNode) and found.tag == _TEXT else None


def _entry(mapping: MappingNode, name: str) -> Node | None:
    return next((value for key, value in mapping.value if key.value == name), None)


def _check_tag(node: Node, source: str, modules: tuple[str, ...]) -> None:
    tag = str(node.tag)
    if tag in _PLAIN or (tag == _TUPLE and isinstance(node, ScalarNode)):
        return
    kind, _, name = tag.partition(":")
    if kind not in ("!new", "!name"):
        raise ValueError(f"{source}: the tag {tag} is refused in a checkpoint (allowed: !new:, !name:)")
    if isinstance(node, SequenceNode) or (isinstance(node, ScalarNode) and node.value):
        raise ValueError(f"{source}: {tag} must have named options")
    _allowed_class(name, tag, source, modules)


def _check_place(path: str, option: str, node: ScalarNode, source: str) -> None:
    """Refuse a value that names a file, a folder or a hub repository, which the class of a part would read."""
    if node.tag == _NULL or not (option in _READ or node.tag in (_TEXT, _TUPLE)):
        return
    if option in _READ or _PLACE.search(node.value) or not node.value.isprintable():
        raise ValueError(
            f"{source}: {path} {node.value[:80]!r}: a checkpoint reads its own files alone and names none elsewhere; "
            "if this one is yours, delete the entry"
        )


def _is_of(node: Node, modules: tuple[str, ...]) -> bool:
    """Return whether a YAML node is built by a class of one of the given modules."""
    kind, _, name = str(node.tag).partition(":")
    return kind in ("!new", "!name") and any(name.startswith(f"{module}.") for module in modules)


def _allowed_class(name: str, tag: str, source: str, modules: tuple[str, ...]) -> type:
    """Return the class of a dotted name if it is defined in an allowed module, and not just imported there."""
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
    """YAML constructor for plain values, the two tags of a checked file, and tuples `(1, 2)`."""

    def construct_scalar(self, node: ScalarNode) -> Any:
        value = super().construct_scalar(node)
        return _tuple(value) if isinstance(value, str) and node.style is None else value


def _tuple(text: str) -> Any:
    """Return the tuple that a text `(..)` of HyperPyYAML represents, and any other text unchanged."""
    if not re.fullmatch(r"\(.*\)", text):
        return text
    inner = bounded_nodes(f"[{text[1:-1]}]", "checkpoint")
    check_numbers(inner, "checkpoint")
    return tuple(YAML(typ="safe", pure=True).constructor.construct_document(inner))


def _construct(constructor: _Constructor, suffix: str, node: Node) -> Any:
    module, _, attribute = suffix.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    options = constructor.construct_mapping(node, deep=True) if isinstance(node, MappingNode) else {}
    if str(node.tag).startswith("!name:"):
        return functools.partial(found, **options)
    try:
        return found(**options)
    except ValueError as error:
        raise ValueError(one_line(error)) from None
    except Exception as error:  # classes report bad options by exceptions of many kinds
        problem = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"checkpoint: {suffix} cannot be built from the options in its YAML ({problem})") from None


_Constructor.add_multi_constructor("!new:", _construct)
_Constructor.add_multi_constructor("!name:", _construct)
# once HyperPyYAML has loaded a file, every ruamel.yaml loader of the process gives `(..)` this tag
_Constructor.add_constructor(_TUPLE, _Constructor.construct_scalar)
