"""How a command or a script tells its user about bad input (one line, exit status 2) and missing packages."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from omnikit.torchrun import Share

BAD_INPUT = 2
INTERRUPTED = 130
"""Exit status of a shell's command that Ctrl-C ended."""
CLOSED = 1
"""Exit status where nobody reads the output any more, as after `| head -1`."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed", "invalid buffer size")
"""What torch says in a RuntimeError where a number asks for more memory than there is."""
TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "unexpected pos")
"""What torch.save says in a RuntimeError where the disk is full."""


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
    """`with bad_input_exits(): main()` ends a command in one line on stderr for what its user, the disk or the memory
    refuses (exit status 2), for `Stopped` (its own status; of torchrun's processes the main one prints it) and for
    Ctrl-C (130). All other exceptions are errors of the program and pass."""
    try:
        yield
        sys.stdout.flush()  # here, since nothing can tell of a full disk after the end
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Stopped as error:
        if Share.of_torchrun().rank == 0:
            print(f"error: {_printable(str(error))}", file=sys.stderr)
        raise SystemExit(error.status) from None
    except BrokenPipeError:
        _drop_output()
        raise SystemExit(CLOSED) from None
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if (words := _message(error)) is None:
            raise
        print(f"error: {_printable(words)}", file=sys.stderr)
        _drop_output()
        raise SystemExit(BAD_INPUT) from None


def _message(error: Exception) -> str | None:
    """Return one line about what is not the program's fault; None for what is."""
    words = one_line(error, None)
    if isinstance(error, MemoryError):
        return f"not enough memory{f' ({words})' if words else ''}"
    if isinstance(error, RuntimeError):
        return f"not enough memory ({words[:300]})" if any(mark in words for mark in _NO_MEMORY) else None
    if isinstance(error, OSError) and error.errno is not None:
        name = "output" if error.filename is None and error.errno in _FULL else error.filename
        return os.strerror(error.errno) if name is None else f"{name}: {os.strerror(error.errno)}"
    return words


def _printable(text: str) -> str:
    """Names in files of others may hold codes that change what a terminal shows."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _drop_output() -> None:
    """Forget what stdout still holds: Python would write it at the end, fail again and say so in its own way."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ArgumentParser(argparse.ArgumentParser):
    """Parse a script's arguments; a wrong one raises a `ValueError`, which `bad_input_exits` prints in one line."""

    def __init__(self, **options: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


def one_line(message: object, most: int | None = 300) -> str:
    """Return an error's message, or another text, without its line breaks and cut after `most` characters."""
    return " ".join(str(message).split())[:most]


class Unwritable(ValueError):
    """The disk or the system refuses a file or a folder."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: cannot be written {reason}")
        self.reason = reason


def unwritable(path: str | Path, error: Exception) -> Unwritable:
    """What to raise when the disk refuses a file or a folder, because it is full for example."""
    if isinstance(error, Unwritable):
        return Unwritable(path, error.reason)
    number = _number(error)
    words = os.strerror(number) if number else one_line(error)
    again = "; start again to go on" if number is None or number in _FULL else ""
    return Unwritable(path, f"({words}){again}")


def _number(error: Exception) -> int | None:
    """The system's number of an error, which libraries in Rust give in words."""
    in_words = re.search(r"os error (\d+)", str(error))
    return getattr(error, "errno", None) or (int(in_words[1]) if in_words else None)


@contextmanager
def writing(path: str | Path, *also: type[Exception]) -> Iterator[None]:
    """Tells of an `OSError`, and of what else libraries raise for one, as `unwritable`; of a file that is a piece of
    what is written, in the name of the whole."""
    try:
        yield
    except (OSError, Unwritable, *also) as error:
        raise unwritable(path, error) from None


@contextmanager
def full_disk_names(folder: str | Path) -> Iterator[None]:
    """Raise `unwritable` for a folder when the disk fills up, in a block that reads and writes much in many ways.

    Other errors pass: what cannot be read is not this folder's fault. Log lines that do not fit are dropped without the
    traceback that `logging` would print for each.
    """
    told, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise unwritable(folder, error) from None
    except RuntimeError as error:
        if not any(mark in str(error) for mark in TORCH_CANNOT_WRITE):
            raise
        raise unwritable(folder, OSError(errno.ENOSPC, "")) from None
    finally:
        logging.raiseExceptions = told


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
