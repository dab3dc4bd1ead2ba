"""Lookup of classes, functions and options by name, with errors that list the possible names."""

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
    """Return the end of an error message about an unknown name: the most similar known name, and all choices."""
    names = sorted(map(str, known))
    if renamed := pointer(name, names):
        return renamed
    close = difflib.get_close_matches(str(name), names, n=1)
    return (f"; did you mean {close[0]}?" if close else "") + f" (choices: {', '.join(names) or 'none'})"


def locate(node: Mapping, who: str) -> Any:
    """Return the class or function that the tag `!new:` or `!name:` of a YAML node names.

    Raises:
        ValueError: there is none, or it needs a package that is not installed; the message begins with `who`.
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
    """Return the names of the arguments that a YAML node with the tag `!new:` or `!name:` may have; None = any."""
    parameters = inspect.signature(locate(node, who)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL}
