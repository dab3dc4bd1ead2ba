"""From names to what they mean, with errors that say what would have been possible."""

from __future__ import annotations

import difflib
import inspect
import pydoc
from collections.abc import Iterable, Mapping
from typing import Any

from omnikit.errors import missing_package
from omnikit.hparams.yaml_tree import dotted_name
from omnikit.old_names import pointer


def nearest(name: object, known: Iterable[object]) -> str:
    """The end of an error message about an unknown name: what was probably meant, and all there is."""
    names = sorted(map(str, known))
    if renamed := pointer(name, names):
        return renamed
    close = difflib.get_close_matches(str(name), names, n=1)
    return (f"; did you mean {close[0]}?" if close else "") + f" (choices: {', '.join(names) or 'none'})"


def locate(node: Mapping, who: str) -> Any:
    """The class or function that a `!new:` or `!name:` node is built by.

    Raises:
        ValueError: there is none, or it needs a package that is not installed; `who` asked for it.
    """
    name = dotted_name(node)
    try:
        found = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        if isinstance(error.value, ModuleNotFoundError):
            raise ValueError(f"{who}: {missing_package(error.value.name)}") from None
        raise
    if found is None:
        raise ValueError(f"{who}: there is no class {name}{pointer(name)}")
    return found


def argument_names(node: Mapping, who: str) -> set[str] | None:
    """The arguments that a `!new:` or `!name:` node may have; `None` where any will do."""
    parameters = inspect.signature(locate(node, who)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL}
