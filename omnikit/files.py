"""Text files in, and files and folders out that are whole or absent: written aside, renamed when they are complete."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from omnikit.errors import writing

ASIDE = ".partial"
"""The ending of what is being written; a kill may leave such a file, which the next run overwrites."""
FORMER = ".old"
"""The ending of a folder that is being replaced; a kill may leave it in place of the folder, see `present_folder`."""
_LONGEST = 236  # bytes of a name beside which `ASIDE` and the number of a process fit; file systems take 255


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    """Return the text of a file.

    Raises:
        ValueError: it is not UTF-8; the message names the file.
        OSError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{path}: not a text in UTF-8 (byte 0x{byte:02x} at position {error.start})") from None


def check_unicode(text: str) -> None:
    """Refuse a text with bytes that were no UTF-8, which Python keeps as lone surrogates and no tokenizer takes.

    Raises:
        ValueError: the message shows the text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text {text[:60]!r}: not UTF-8 (character {error.start})") from None


@contextmanager
def whole_file(path: str | Path, *also: type[Exception]) -> Iterator[Path]:
    """Yield the path to write to, beside `path`, and rename it to `path` when the block ends without an error.

    After an error nothing is left of it, and what was at `path` before stays. A link is kept, and the file that it
    points to is replaced. A device or a pipe, which cannot be replaced, is written to directly.

    Args:
        path: its folder is made where it is missing.
        also: exceptions other than OSError by which a library tells that it cannot write.

    Raises:
        ValueError: the disk or the system refuses; the message names `path`.
    """
    with writing(path, *also):
        final = Path(os.path.realpath(path))
        if final.exists() and not (final.is_file() or final.is_dir()):
            yield final
            return
        aside = aside_of(final)
        try:
            make_folder(final.parent)
            yield aside
            os.replace(aside, final)
        except BaseException:
            remove(aside)
            raise


@contextmanager
def whole_text(path: str | Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file for writing in UTF-8 that is whole or absent, see `whole_file`; `newline` as for `open`."""
    with whole_file(path) as aside, aside.open("w", encoding="utf-8", newline=newline) as file:
        yield file


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, beside `folder`, and put it in the place of `folder` when the block ends without
    an error. After an error or a kill the former folder is there, or the new one, whole.

    Raises:
        ValueError: the disk or the system refuses; the message names `folder`.
    """
    aside = aside_of(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.exists() and present_folder(folder).is_dir():
            os.rename(present_folder(folder), folder)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir()
            yield aside
            _exchange(folder, aside)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def _exchange(folder: Path, aside: Path) -> None:
    """Folders cannot be exchanged in one step everywhere: a kill in between leaves the former one alone."""
    former = folder.with_name(folder.name + FORMER)
    if folder.exists():
        shutil.rmtree(former, ignore_errors=True)
        os.rename(folder, former)
    os.rename(aside, folder)
    shutil.rmtree(former, ignore_errors=True)


def present_folder(folder: Path) -> Path:
    """Return the folder, or what a kill in `whole_folder` has left of it."""
    former = folder.with_name(folder.name + FORMER)
    return former if former.is_dir() and not folder.is_dir() else folder


def write_text(path: str | Path, text: str, errors: str = "strict") -> None:
    """Write a text file in UTF-8 that is whole or absent, see `whole_file`; `errors` as for `str.encode`."""
    write_bytes(path, text.encode(errors=errors))


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Write a file that is whole or absent, see `whole_file`."""
    with whole_file(path) as aside:
        aside.write_bytes(data)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is whole or absent, see `whole_file`."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_text(path, text, errors="backslashreplace")  # JSON's own escapes for file names that are not UTF-8


def check_writable(path: str | Path) -> None:
    """Refuse a file that could not be written, before the work is done whose result it takes.

    Raises:
        ValueError: it is a folder, or the system refuses a file there; the message names it.
    """
    final = Path(os.path.realpath(path))
    with writing(path):
        if final.exists() and not final.is_file():
            if final.is_dir():
                raise ValueError(f"{path}: is a folder; name a file")
            return
        aside = aside_of(final)
        aside.touch()
        remove(aside)
        with suppress(FileNotFoundError):
            final.lstat()  # tells of a name that is too long


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are missing.

    Raises:
        NotADirectoryError: a file is in the way.
        OSError: the system refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None


def aside_of(path: Path, *, of_process: bool = False) -> Path:
    """Return where a file is written until it is complete: in the same folder, under a name that is not too long.

    Args:
        of_process: under a name that no other process uses.
    """
    name = path.name if len(os.fsencode(path.name)) <= _LONGEST else os.fsdecode(os.fsencode(path.name)[:_LONGEST])
    return path.with_name(f"{name}.{os.getpid()}{ASIDE}" if of_process else name + ASIDE)


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as the system lets it; none need be there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
