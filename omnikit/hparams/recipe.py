"""From a YAML file and overrides to built objects."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import TaggedScalar
from ruamel.yaml.error import YAMLError

from omnikit.hparams.command_line import split_command_line
from omnikit.hparams.include import read_recipe
from omnikit.hparams.name_lookup import locate, nearest
from omnikit.hparams.named_parts import KINDS, part_files, pick
from omnikit.hparams.overrides import as_overrides
from omnikit.hparams.part_flags import part_names, spread
from omnikit.hparams.yaml_tree import dotted_name, read_tree_text, tag_of, walk, write_tree, yaml_problem
from omnikit.old_names import pointer
from omnikit.part_sizes import check_numbers

MODEL = "model"
"""Key of the model that joins the parts."""
NAMES = "part_names"
"""Key of what each part is called, in a resolved text and in a checkpoint."""
ORIGINS = ("weights", "tokenizer", "attention")
"""Options of parts that say where files come from or how fast something runs, and leave the parameters as they are."""
_NOT_TRAINED = (*ORIGINS, "lora")


@dataclass(frozen=True)
class Recipe:
    """What a training script starts from."""

    path: str  # the YAML file
    hparams: dict[str, Any]  # built
    run_opts: dict[str, Any]  # for SpeechBrain's Brain
    overrides: dict[str, Any]  # for SpeechBrain's create_experiment_directory
    text: str  # the YAML text, all choices made and all references replaced
    parts: str  # of that text the parts and the model, for `omnikit.checkpoint`

    @property
    def choice(self) -> str:
        """The parts in one line: `encoder mini, codec mimi (tiny), ..`."""
        return ", ".join(f"{kind} {name}" for kind, name in names_of(self.parts).items())


def load_recipe(argv: list[str] | None = None, check: Callable[[Mapping[str, Any]], None] | None = None) -> Recipe:
    """Build what a training script's command line describes.

    Args:
        argv: the arguments without the script's name; `None` = those of this process.
        check: called before anything is built with the recipe's plain values, nested as in its file; raises
            `ValueError` for those that cannot be.

    Raises:
        ValueError: bad file, flag or value; the message is one line for the user.
    """
    path, run_opts, settings = split_command_line(sys.argv[1:] if argv is None else argv)
    overrides, text = resolve(path, settings)
    if check is not None:
        check(read_tree_text(text, path))
    hparams = build(text, path)
    return Recipe(
        path=path, hparams=hparams, run_opts=run_opts, overrides=overrides, text=text, parts=dump_parts(text)
    )


def build_parts(names: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The system of `hparams/system.yaml` with other parts or options.

    Args:
        names: kind of part -> name, such as `{"codec": "mimi"}`.
        overrides: dotted key -> value, such as `{"codec.num_codebooks": 4}`; also `pretrained` and `size`.

    Returns:
        The objects by the keys of that file: the parts by kind, and `model`.

    Raises:
        ValueError: unknown kind, name or key.
    """
    for kind in names or {}:
        if kind not in KINDS:
            raise ValueError(f"part {kind!r}: no such kind of part{nearest(kind, KINDS)}")
    path = str(part_files() / "system.yaml")
    _, text = resolve(path, {**(names or {}), **(overrides or {})})
    return build(text, path)


def build_part(part: str, name: str, **options: Any) -> Any:
    """One part alone.

    Raises:
        ValueError: unknown kind, name or option.
    """
    return build(write_tree({part: pick(part, name, **options)}), name)[part]


def resolve(path: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Overrides in HyperPyYAML's form, and the YAML text with every choice made and every reference replaced; what the
    parts are called stands at its end.

    Raises:
        ValueError: see `load_recipe`.
    """
    from hyperpyyaml import resolve_references  # here and below: a checkpoint is read without it

    tree = read_recipe(path)
    folder = Path(path).parent
    overrides = as_overrides(tree, spread(tree, settings, folder), folder)
    _check_placeholders(tree, overrides, path)
    _check_classes(tree, path)
    stream = StringIO(write_tree(tree))
    stream.name = path  # where HyperPyYAML looks for files that are included under a key
    text = resolve_references(stream, copy.deepcopy(overrides)).getvalue()
    names = part_names(tree, overrides)
    return overrides, text + (write_tree({NAMES: names}) if names else "")


def build(text: str, source: str) -> dict[str, Any]:
    """The objects of a resolved YAML text; the model remembers the text of its parts in `model.recipe`.

    Raises:
        ValueError: not YAML, or a number that no part can be built from.
    """
    from hyperpyyaml import load_hyperpyyaml

    tree = read_tree_text(text, source)
    for kind in (*KINDS, MODEL):
        if isinstance(tree.get(kind), Mapping):
            check_numbers(tree[kind], kind)
    try:
        objects = load_hyperpyyaml(text)
    except YAMLError as error:
        raise ValueError(f"{source}: {yaml_problem(error)}") from None
    if MODEL in objects:
        objects[MODEL].recipe = dump_parts(text)
    return objects


def dump_parts(text: str) -> str:
    """From a resolved recipe, what is needed to build its model again without the part files.

    Weights are left out: those of a built model are its own.
    """
    tree = read_tree_text(text, "recipe")
    for key in [key for key in tree if key not in (*KINDS, MODEL, NAMES)]:
        del tree[key]
    for node in tree.values():
        if isinstance(node, Mapping) and "weights" in node:
            node["weights"] = None
    return write_tree(tree)


def self_contained(text: str) -> str:
    """Return a resolved recipe as a recipe that can be run again, in any folder and without the files it came from."""
    tree = read_tree_text(text, "recipe")
    tree.pop(NAMES, None)  # `resolve` adds them anew
    return write_tree(tree)


def names_of(text: str) -> dict[str, str]:
    """Kind -> what its part is called, from a text of `dump_parts`; empty if it is older than these names."""
    return dict(read_tree_text(text, "recipe").get(NAMES, {}))


def different_parts(recipe: str, other: str, ignored: tuple[str, ...] = _NOT_TRAINED) -> dict[str, tuple[str, str]]:
    """Compare two texts of `dump_parts`.

    The decoding strategy may differ, and so may options whose difference leaves trained weights fitting.

    Args:
        ignored: options of parts that are not compared.

    Returns:
        Kind of part, or `model`, that the two do not share -> what it is in the one and in the other.
    """
    trees = read_tree_text(recipe, "recipe"), read_tree_text(other, "recipe")
    different = {}
    for kind in (*KINDS, MODEL):
        parts = [tree.get(kind) for tree in trees]
        if kind == "strategy" or None in parts:
            continue
        if tag_of(parts[0]) != tag_of(parts[1]):
            different[kind] = tuple(_called(tree, kind) for tree in trees)
            continue
        options = [dict(_options(_completed(*pair))) for pair in (parts, parts[::-1])]
        if changed := _changed(*options, (*ignored, *(KINDS if kind == MODEL else ()))):
            different[kind] = tuple(", ".join(f"{key} {part.get(key)}" for key in changed) for part in options)
    return different


def _called(tree: Mapping, kind: str) -> str:
    """Name and class of a part."""
    name = tree.get(NAMES, {}).get(kind)
    return f"{name}, {dotted_name(tree[kind])}" if name else dotted_name(tree[kind])


def settings_of(text: str) -> dict[str, Any]:
    """Return the plain values of a resolved recipe by dotted key, without those of the parts and the model."""
    tree = read_tree_text(text, "recipe")
    others = {key: value for key, value in tree.items() if key not in (*KINDS, MODEL, NAMES)}
    return {key: value for key, value in _options(others) if not key.startswith("__")}


def _options(part: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each option; the tag of a nested mapping is an option, too."""
    for key, value in part.items():
        if isinstance(value, Mapping):
            if tag_of(value):
                yield f"{prefix}{key}", tag_of(value)
            yield from _options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def _plain(value: Any) -> Any:
    """A value of a tree that equals itself when it is read again: ruamel's tagged ones do not."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return f"{tag_of(value)} {value.value}".strip() if isinstance(value, TaggedScalar) else value


def _changed(part: Mapping, other: Mapping, ignored: tuple[str, ...]) -> list[str]:
    keys = [key for key in {**part, **other} if key.partition(".")[0] not in ignored]
    return [key for key in keys if part.get(key) != other.get(key)]


def _completed(part: Mapping, other: Mapping) -> Mapping:
    """A part with its class's defaults of the options that only the other lists: its text may be older than them."""
    arguments = inspect.signature(locate(part, "checkpoint")).parameters
    defaults = {key: arguments[key].default for key in other if key not in part and key in arguments}
    return {**part, **defaults}


def _check_placeholders(tree: Mapping, overrides: Mapping[str, Any], path: str) -> None:
    for key, node in walk(tree):
        if tag_of(node) == "!PLACEHOLDER" and not _given(overrides, key.split(".")):
            raise ValueError(f"--{key}: required by {path}, give it a value")


def _check_classes(tree: Mapping, path: str) -> None:
    """Refuse classes that are called otherwise now."""
    for key, node in walk(tree):
        if tag_of(node).startswith("!") and (renamed := pointer(dotted_name(node))):
            raise ValueError(f"{path}: {key}: there is no class {dotted_name(node)}{renamed}")


def _given(overrides: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(overrides, Mapping) or key not in overrides:
            return False
        overrides = overrides[key]
    return True
