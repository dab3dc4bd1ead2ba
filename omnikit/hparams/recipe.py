"""Recipes: building objects from a YAML file and overrides."""

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
from omnikit.hparams.part_flags import NAMES, part_names, spread
from omnikit.hparams.yaml_tree import dotted_name, read_tree_text, tag_of, walk, write_tree, yaml_problem
from omnikit.old_names import pointer
from omnikit.part_sizes import check_numbers

MODEL = "model"
"""Key of a recipe under which it defines the model, which joins the parts."""
ORIGINS = ("weights", "tokenizer", "attention")
"""Options of parts that name files or affect speed only, and so leave the parameters as they are."""
_NOT_TRAINED = (*ORIGINS, "lora")


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe and the objects built from it, with which a training script starts."""

    path: str  # path of the YAML file
    hparams: dict[str, Any]  # the built objects by key
    run_opts: dict[str, Any]  # for SpeechBrain's Brain
    overrides: dict[str, Any]  # for SpeechBrain's create_experiment_directory
    text: str  # the YAML text with all choices made and all references resolved
    parts: str  # parts and model of that text, for `omnikit.checkpoint`

    @property
    def choice(self) -> str:
        """Names of the parts in one line: `encoder mini, codec mimi (tiny), ..`."""
        return ", ".join(f"{kind} {name}" for kind, name in names_of(self.parts).items())


def load_recipe(argv: list[str] | None = None, check: Callable[[Mapping[str, Any]], None] | None = None) -> Recipe:
    """Build the objects of the recipe that a training script's command line names.

    Args:
        argv: the arguments without the script's name; None = those of this process.
        check: function that is called before anything is built with the recipe's plain values, nested as in its file,
            and raises `ValueError` for bad ones.

    Raises:
        ValueError: a file, a flag or a value is bad; the message is one line for the user.
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
    """Build the system of `hparams/system.yaml` with other parts or options.

    Args:
        names: kind of part -> name, such as `{"codec": "mimi"}`.
        overrides: dotted key -> value, such as `{"codec.num_codebooks": 4}`; also `pretrained` and `size`.

    Returns:
        The objects by the keys of that file: the parts by kind, and `model`.

    Raises:
        ValueError: a kind, name or key is unknown.
    """
    for kind in names or {}:
        if kind not in KINDS:
            raise ValueError(f"part {kind!r}: no such kind of part{nearest(kind, KINDS)}")
    path = str(part_files() / "system.yaml")
    _, text = resolve(path, {**(names or {}), **(overrides or {})})
    return build(text, path)


def build_part(part: str, name: str, **options: Any) -> Any:
    """Build a single part by its name.

    Raises:
        ValueError: kind, name or option is unknown.
    """
    return build(write_tree({part: pick(part, name, **options)}), name)[part]


def resolve(path: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the overrides in HyperPyYAML's form, and the recipe's YAML text with all choices and references resolved.

    The names of the parts stand at the end of the text.

    Raises:
        ValueError: see `load_recipe`.
    """
    from hyperpyyaml import resolve_references  # imported here and below, since reading a checkpoint does not need it

    tree = read_recipe(path)
    folder = Path(path).parent
    overrides = as_overrides(tree, spread(tree, settings, folder), folder)
    _check_placeholders(tree, overrides, path)
    _check_classes(tree, path)
    stream = StringIO(write_tree({key: value for key, value in tree.items() if key != NAMES}))
    stream.name = path  # where HyperPyYAML looks for files that are included under a key
    text = resolve_references(stream, copy.deepcopy(overrides)).getvalue()
    names = part_names(tree, overrides)
    return overrides, text + (write_tree({NAMES: names}) if names else "")


def build(text: str, source: str) -> dict[str, Any]:
    """Build the objects of a resolved YAML text; the text of the parts is stored in `model.recipe`.

    Raises:
        ValueError: the text is not YAML, or has a number that no part can be built from.
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
    """Return the section of a resolved recipe from which its model can be built again without part files.

    The `weights` options are set to null, since a built model has its own weights.
    """
    tree = read_tree_text(text, "recipe")
    for key in [key for key in tree if key not in (*KINDS, MODEL, NAMES)]:
        del tree[key]
    for node in tree.values():
        if isinstance(node, Mapping) and "weights" in node:
            node["weights"] = None
    return write_tree(tree)


def names_of(text: str) -> dict[str, str]:
    """Return the names of the parts by kind from a text of `dump_parts`; empty if the text was saved without names."""
    return dict(read_tree_text(text, "recipe").get(NAMES, {}))


def different_parts(recipe: str, other: str, ignored: tuple[str, ...] = _NOT_TRAINED) -> dict[str, tuple[str, str]]:
    """Compare the parts of two recipes, given as texts of `dump_parts`, and return the differences.

    The decoding strategy may differ, and so may options with which trained weights still fit.

    Args:
        ignored: options of parts that are not compared.

    Returns:
        Kind of each part, or `model`, that differs -> its description in the one and in the other.
    """
    trees = read_tree_text(recipe, "recipe"), read_tree_text(other, "recipe")
    different = {}
    for kind in (*KINDS, MODEL):
        parts = [tree.get(kind) for tree in trees]
        if kind == "strategy" or None in parts:
            continue
        if tag_of(parts[0]) != tag_of(parts[1]):
            different[kind] = tuple(_name_and_class(tree, kind) for tree in trees)
            continue
        options = [dict(_options(_completed(*pair))) for pair in (parts, parts[::-1])]
        if changed := _changed(*options, (*ignored, *(KINDS if kind == MODEL else ()))):
            different[kind] = tuple(", ".join(f"{key} {part.get(key)}" for key in changed) for part in options)
    return different


def _name_and_class(tree: Mapping, kind: str) -> str:
    """Return the name and class of a part for error messages."""
    name = tree.get(NAMES, {}).get(kind)
    return f"{name}, {dotted_name(tree[kind])}" if name else dotted_name(tree[kind])


def settings_of(text: str) -> dict[str, Any]:
    """Return the plain values of a resolved recipe by dotted key, without those of the parts and the model."""
    tree = read_tree_text(text, "recipe")
    others = {key: value for key, value in tree.items() if key not in (*KINDS, MODEL, NAMES)}
    return {key: value for key, value in _options(others) if not key.startswith("__")}


def _options(part: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of each option in a part's YAML; the tag of a nested mapping is an option, too."""
    for key, value in part.items():
        if isinstance(value, Mapping):
            if tag_of(value):
                yield f"{prefix}{key}", tag_of(value)
            yield from _options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def _plain(value: Any) -> Any:
    """Return a YAML value in a form that can be compared for equality, which ruamel's tagged values cannot."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return f"{tag_of(value)} {value.value}".strip() if isinstance(value, TaggedScalar) else value


def _changed(part: Mapping, other: Mapping, ignored: tuple[str, ...]) -> list[str]:
    keys = [key for key in {**part, **other} if key.partition(".")[0] not in ignored]
    return [key for key in keys if part.get(key) != other.get(key)]


def _completed(part: Mapping, other: Mapping) -> Mapping:
    """Return the options of a part, with its class's defaults for options that only the part it is compared with has.

    The part may have been saved before its class had these options.
    """
    arguments = inspect.signature(locate(part, "checkpoint")).parameters
    defaults = {key: arguments[key].default for key in other if key not in part and key in arguments}
    return {**part, **defaults}


def _check_placeholders(tree: Mapping, overrides: Mapping[str, Any], path: str) -> None:
    for key, node in walk(tree):
        if tag_of(node) == "!PLACEHOLDER" and not _has_key(overrides, key.split(".")):
            raise ValueError(f"--{key}: required by {path}, give it a value")


def _check_classes(tree: Mapping, path: str) -> None:
    """Refuse a recipe that names classes by their old names."""
    for key, node in walk(tree):
        if tag_of(node).startswith("!") and (renamed := pointer(dotted_name(node))):
            raise ValueError(f"{path}: {key}: there is no class {dotted_name(node)}{renamed}")


def _has_key(overrides: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(overrides, Mapping) or key not in overrides:
            return False
        overrides = overrides[key]
    return True
