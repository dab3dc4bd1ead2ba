"""Errors for users: bad input in one line with exit status 2, full disks, and missing packages."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from omnikit.torchrun import Share

BAD_INPUT = 2
INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended, as shells report it."""
CLOSED = 1
"""Exit status of a command whose output nobody reads any more, as after `| head -1`."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed", "invalid buffer size")
"""Texts in the messages of torch's RuntimeErrors by which a lack of memory is recognised."""
TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "unexpected pos")
"""Texts in the messages of the RuntimeErrors of `torch.save` by which a full disk is recognised."""


class MissingWeights(ValueError):
    """Error that says that weights are not on this machine and cannot be fetched."""


class Stopped(Exception):
    """Exception that ends a command with a one-line message for a reason other than bad input.

    Args:
        message: the line that is printed.
        status: exit status of the process.
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


@contextmanager
def bad_input_exits() -> Iterator[None]:
    """Context manager that ends a command with one line on stderr for an error of its user.

    Covers what the user, the disk or the memory refuses (exit status 2), `Stopped` (its own status; under torchrun the
    main process alone prints it) and Ctrl-C (130). All other exceptions are errors of the program and pass. Used as
    `with bad_input_exits(): main()`.
    """
    try:
        yield
        sys.stdout.flush()  # here, since a full disk could not be reported after the end
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
    """Return a one-line message for an error caused by the user, the disk or a lack of memory; None for any other."""
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
    """Replace unprintable characters by `?`, since they could change what a terminal shows."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _drop_output() -> None:
    """Discard buffered standard output that cannot be written, since Python would fail to write it again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises a `ValueError` for a wrong argument, printed by `bad_input_exits` in one line."""

    def __init__(self, **options: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


def one_line(message: object, most: int | None = 300) -> str:
    """Return the text of an error or another object in one line, truncated after `most` characters."""
    return " ".join(str(message).split())[:most]


def there_and_here(different: Mapping[str, tuple[Any, Any]]) -> str:
    """Return differences as text for an error: `{"codec": ("snac", "mimi")}` as `codec is snac there and mimi here`."""
    return "; ".join(f"{name} is {there} there and {here} here" for name, (there, here) in different.items())


class Unwritable(ValueError):
    """Error raised when the disk or the system refuses to write a file or a folder."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: cannot be written {reason}")
        self.reason = reason


def unwritable(path: str | Path, error: Exception) -> Unwritable:
    """Return the exception to raise when the disk or the system refuses to write a file or a folder."""
    if isinstance(error, Unwritable):
        return Unwritable(path, error.reason)
    number = _number(error)
    words = os.strerror(number) if number else one_line(error)
    again = "; start again to go on" if number is None or number in _FULL else ""
    return Unwritable(path, f"({words}){again}")


def _number(error: Exception) -> int | None:
    """Return the `errno` of an error of the operating system; libraries written in Rust have it in the message only."""
    in_words = re.search(r"os error (\d+)", str(error))
    return getattr(error, "errno", None) or (int(in_words[1]) if in_words else None)


@contextmanager
def writing(path: str | Path, *also: type[Exception]) -> Iterator[None]:
    """Context manager that turns errors of writing into `Unwritable` with the name of `path`.

    Args:
        path: file or folder that is being written; an error about a file inside it is reported under this name.
        also: exceptions other than OSError by which a library reports that it cannot write.
    """
    try:
        yield
    except (OSError, Unwritable, *also) as error:
        raise unwritable(path, error) from None


@contextmanager
def full_disk_names(folder: str | Path) -> Iterator[None]:
    """Context manager that raises `Unwritable` for a folder when the disk fills up inside the block.

    Other errors pass, since a file that cannot be read is not this folder's fault. Log lines that do not fit on the
    disk are dropped without the traceback that `logging` would print for each.
    """
    before, logging.raiseExceptions = logging.raiseExceptions, False
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
        logging.raiseExceptions = before


def missing_package(module: str) -> str:
    """Return the message for a module that cannot be imported: its package and how to install it.

    If the package belongs to an extra of omnikit, the message names the extra.
    """
    package = module.partition(".")[0]
    extra = _extra_with(package)
    wanted = package if extra is None else f"'omnikit[{extra}]'"
    return f"needs the Python package {package!r}, which is not installed: pip install {wanted}"


def _extra_with(package: str) -> str | None:
    """Return the smallest optional extra of omnikit that installs a package, None if there is none."""
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
