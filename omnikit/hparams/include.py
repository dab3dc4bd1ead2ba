"""Recipes that take in another file: `<<: !include:training.yaml {}`.

HyperPyYAML's `!include:` builds the other file under a key of its own, where references to this one's values are not
resolved; behind YAML's merge key `<<` it drops the file without a word. Here the entries of the other file become those
of the recipe before HyperPyYAML sees it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnikit.hparams.named_parts import part_files
from omnikit.hparams.overrides import as_overrides
from omnikit.hparams.yaml_tree import INCLUDE, dotted_name, has_tag, merged, open_tree, tag_of, walk


def read_recipe(path: str | Path) -> Mapping:
    """Read a recipe together with the file that it takes in, of which its own entries replace those of the same name.

    Below a mapping of the other file an own entry acts as in an override file: `epochs.limit: 40` or `codec: mimi`. The
    entries of the other file stand where `<<` does; those that it does not have stay above or below it.

    Args:
        path: the recipe. A file that it takes in lies beside it, or is one that comes with the package (`hparams/`).

    Raises:
        ValueError: see `read_tree`; or an entry that cannot stand in the place of the other file's.
    """
    return _read(Path(path), ())


def _read(path: Path, above: tuple[Path, ...]) -> Mapping:
    tree = open_tree(path)
    if not merged(tree):
        return tree
    base_path = _included(tree, path)
    if base_path.resolve() in (path.resolve(), *above):
        raise ValueError(f"{path}: !include:{base_path}: takes in this file again")
    base = copy.deepcopy(_read(base_path, (*above, path.resolve())))
    _check_nested(base, base_path, path)
    return _joined(base, tree, path)


def _included(tree: Mapping, path: Path) -> Path:
    """Return the file that stands behind `<<`."""
    include, *others = merged(tree)
    if others or not has_tag(include, INCLUDE) or include:
        raise ValueError(f"{path}: << takes one file, as in `<<: !include:training.yaml {{}}`; changes are entries")
    name = dotted_name(include)
    for folder in (path.parent, part_files()):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{path}: !include:{name}: no such file, neither beside it nor in {part_files()}")


def _check_nested(base: Mapping, base_path: Path, path: Path) -> None:
    """Refuse a file under a key of an included file that lies elsewhere: HyperPyYAML looks beside the recipe itself."""
    if base_path.resolve().parent == path.resolve().parent:
        return
    for key, node in walk(base):
        if has_tag(node, INCLUDE):
            raise ValueError(f"{base_path}: {key}: {tag_of(node)} would be looked for beside {path}")


def _joined(base: Mapping, tree: Mapping, path: Path) -> Mapping:
    """Return the entries of a recipe and of the file that it takes in, one after another."""
    from hyperpyyaml.core import recursive_update  # a checkpoint is read without it

    changes = {key: value for key, value in tree.items() if _changes(key, value, base)}
    try:
        recursive_update(base, as_overrides(base, changes, path.parent))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    whole = {key: value for key, value in tree.items() if key not in changes}
    first = [key for key in list(tree)[: tree.merge.merge_pos] if key in whole and key not in base]
    for place, key in enumerate(first):
        base.insert(place, key, whole[key])
    base.update(whole)
    return base


def _changes(key: str, value: Any, base: Mapping) -> bool:
    """Return whether an entry changes something below a mapping of the included file, rather than being all there is of
    that name."""
    return isinstance(base.get(key.partition(".")[0]), Mapping) and tag_of(value) in ("", "!ref")
