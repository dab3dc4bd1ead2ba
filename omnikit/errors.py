"""How a command or a script tells its user about bad input (one line, exit status 2) and missing packages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from omnikit.torchrun import Share

BAD_INPUT = 2


class Stopped(Exception):
    """Ends a command for a reason that is told in one line, without being bad input.

    Args:
        message: what is printed.
        status: exit status of the process.
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


@contextmanager
def bad_input_exits() -> Iterator[None]:
    """`with bad_input_exits(): main()` turns a `ValueError` into its message on stderr and exit status 2, and `Stopped`
    into its message and status; of torchrun's processes the main one prints it."""
    try:
        yield
    except (ValueError, Stopped) as error:
        if Share.of_torchrun().rank == 0 or isinstance(error, ValueError):
            print(f"error: {_printable(' '.join(str(error).split()))}", file=sys.stderr)
        raise SystemExit(error.status if isinstance(error, Stopped) else BAD_INPUT) from None


def _printable(text: str) -> str:
    """Names in files of others may hold codes that change what a terminal shows."""
    return "".join(char if char.isprintable() else "?" for char in text)


def one_line(error: BaseException) -> str:
    """What an error of a library says, without its line breaks and at a bearable length."""
    return " ".join(str(error).split())[:300]


def unwritable(path: str | Path, error: Exception) -> ValueError:
    """What to raise when the disk refuses a file or a folder, because it is full for example."""
    number = getattr(error, "errno", None)
    return ValueError(
        f"{path}: cannot be written ({os.strerror(number) if number else one_line(error)}); start again to go on"
    )


@contextmanager
def writing(path: str | Path, *also: type[Exception]) -> Iterator[None]:
    """Tells of an `OSError`, and of what else libraries raise for one, as `unwritable`."""
    try:
        yield
    except (OSError, *also) as error:
        raise unwritable(path, error) from None


def missing_package(module: str) -> str:
    """What to say when a module cannot be imported: its package, and how it is installed, as an extra of omnikit's if
    it belongs to one."""
    package = module.partition(".")[0]
    extra = _extra_with(package)
    wanted = package if extra is None else f"'omnikit[{extra}]'"
    return f"needs the Python package {package!r}, which is not installed: pip install {wanted}"


def _extra_with(package: str) -> str | None:
    """The smallest extra of the installed omnikit that brings a package."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        extras = metadata.metadata("omnikit").get_all("Provides-Extra") or []
        requirements = [Requirement(line) for line in metadata.requires("omnikit") or []]
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        return None
    optional = [each for each in requirements if each.marker is not None]
    brought = {
        extra: {canonicalize_name(each.name) for each in optional if each.marker.evaluate({"extra": extra})}
        for extra in extras
    }
    fitting = [extra for extra in extras if canonicalize_name(package) in brought[extra]]
    return min(fitting, key=lambda extra: len(brought[extra]), default=None)
