"""Inclusion of one recipe file in another: `<<: !include:training.yaml {}`.

HyperPyYAML's `!include:` builds the other file under a key of its own, where references to this file's values are not
resolved; behind YAML's merge key `<<` it drops the file without an error. Here the entries of the included file become
entries of the recipe before HyperPyYAML sees it.
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
    """Read a recipe together with the file that it includes; entries of the recipe replace those of the same name.

    Below a mapping of the included file an entry of the recipe acts as in an override file: `epochs.limit: 40` or
    `codec: mimi`. The included entries stand in the place of `<<`; entries that only the recipe has stay above or below
    them.

    Args:
        path: the recipe. The file that it includes lies beside it, or comes with the package (`hparams/`).

    Raises:
        ValueError: a file is missing or bad, see `read_tree`, or an entry cannot replace the included one.
    """
    return _read(Path(path), ())


def _read(path: Path, above: tuple[Path, ...]) -> Mapping:
    tree = open_tree(path)
    if not merged(tree):
        return tree
    base_path = _included(tree, path)
    if base_path.resolve() in (path.resolve(), *above):
        raise ValueError(f"{path}: !include:{base_path}: includes this file again")
    base = copy.deepcopy(_read(base_path, (*above, path.resolve())))
    _check_nested(base, base_path, path)
    return _joined(base, tree, path)


def _included(tree: Mapping, path: Path) -> Path:
    """Return the path of the file that the merge key `<<` includes."""
    include, *others = merged(tree)
    if others or not has_tag(include, INCLUDE) or include:
        raise ValueError(f"{path}: << takes one file, as in `<<: !include:training.yaml {{}}`; changes are entries")
    name = dotted_name(include)
    for folder in (path.parent, part_files()):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{path}: !include:{name}: no such file, neither beside it nor in {part_files()}")


def _check_nested(base: Mapping, base_path: Path, path: Path) -> None:
    """Refuse an included recipe file of another folder that itself includes files under keys.

    HyperPyYAML would look for those beside the recipe.
    """
    if base_path.resolve().parent == path.resolve().parent:
        return
    for key, node in walk(base):
        if has_tag(node, INCLUDE):
            raise ValueError(f"{base_path}: {key}: {tag_of(node)} would be looked for beside {path}")


def _joined(base: Mapping, tree: Mapping, path: Path) -> Mapping:
    """Return the entries of a recipe merged with those of the file that it includes."""
    from hyperpyyaml.core import recursive_update  # imported here, since reading a checkpoint does not need it

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
    """Return whether a recipe's entry changes part of a mapping of the included file, instead of defining it anew."""
    return isinstance(base.get(key.partition(".")[0]), Mapping) and tag_of(value) in ("", "!ref")
