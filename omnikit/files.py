"""Reading of text files, and writing of files and folders that are either complete or absent.

Everything but appended lines is written under another name in the same folder and renamed when it is complete.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from omnikit.errors import writing

ASIDE = ".partial"
"""Suffix of a file that is being written; a kill may leave such a file, which the next run overwrites."""
FORMER = ".old"
"""Suffix of a folder that is being replaced; a kill may leave it in place of the folder, see `present_folder`."""
SURROGATES = "backslashreplace"
"""Encoding error handler by which file names that are not UTF-8 are written as escapes of JSON."""
_LONGEST = 236  # bytes of a name that leave room for `ASIDE` and a process id; file systems take 255


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    """Return the text of a file.

    Raises:
        ValueError: the file is not UTF-8; the message names it.
        OSError: the file cannot be read.
    """
    try:
        return Path(path).read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{path}: not a text in UTF-8 (byte 0x{byte:02x} at position {error.start})") from None


def check_unicode(text: str) -> None:
    """Refuse a text with bytes that were not UTF-8, which Python represents by lone surrogates and no tokenizer takes.

    Raises:
        ValueError: the text has such bytes; the message shows it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text {text[:60]!r}: not UTF-8 (character {error.start})") from None


@contextmanager
def whole_file(path: str | Path, *also: type[Exception], of_process: bool = False) -> Iterator[Path]:
    """Context manager that yields a path to write to, and renames it to `path` when the block ends without an error.

    After an error the new file is removed and the one that was at `path` stays. A link is kept, and the file that it
    points to is replaced. A device or a pipe, which cannot be replaced, is written to directly.

    Args:
        path: file to be written; its folder is created if it is missing.
        also: exceptions other than OSError by which a library reports that it cannot write.
        of_process: write under a name that no other process uses, since several may write the same file.

    Raises:
        ValueError: the disk or the system refuses; the message names `path`.
    """
    with writing(path, *also):
        final = Path(os.path.realpath(path))
        if final.exists() and not (final.is_file() or final.is_dir()):
            yield final
            return
        aside = aside_of(final, of_process=of_process)
        try:
            make_folder(final.parent)
            yield aside
            os.replace(aside, final)
        except BaseException:
            remove(aside)
            raise


@contextmanager
def whole_text(path: str | Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file for writing in UTF-8 that is either complete or absent; see `whole_file`.

    `newline` has the meaning that it has for `open`.
    """
    with whole_file(path) as aside, aside.open("w", encoding="utf-8", newline=newline) as file:
        yield file


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Context manager that yields an empty folder, and replaces `folder` by it when the block ends without an error.

    After an error or a kill the former folder is there, or the new one, complete.

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
    """Replace one folder by another; file systems need two steps, so a kill may leave only the former one, renamed."""
    former = folder.with_name(folder.name + FORMER)
    if folder.exists():
        shutil.rmtree(former, ignore_errors=True)
        os.rename(folder, former)
    os.rename(aside, folder)
    shutil.rmtree(former, ignore_errors=True)


def present_folder(folder: Path) -> Path:
    """Return the path of a folder, or of its former version if a kill in `whole_folder` has left only that."""
    former = folder.with_name(folder.name + FORMER)
    return former if former.is_dir() and not folder.is_dir() else folder


def write_text(path: str | Path, text: str, errors: str = "strict") -> None:
    """Write a text file in UTF-8 that is either complete or absent; see `whole_file`.

    `errors` has the meaning that it has for `str.encode`.
    """
    write_bytes(path, text.encode(errors=errors))


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Write a binary file that is either complete or absent; see `whole_file`."""
    with whole_file(path) as aside:
        aside.write_bytes(data)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is either complete or absent; see `whole_file`."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_text(path, text, errors=SURROGATES)


def check_writable(path: str | Path) -> None:
    """Refuse an output file that cannot be written, before any work on its content begins.

    Raises:
        ValueError: the path is a folder, or the system refuses a file there; the message names it.
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
            final.lstat()  # raises for a name that is too long


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they are missing.

    Raises:
        NotADirectoryError: a file is in the way.
        OSError: the system refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None


def aside_of(path: Path, *, of_process: bool = False) -> Path:
    """Return the path at which a file is written until it is complete: in the same folder, under a name that fits.

    Args:
        path: the final path of the file.
        of_process: use a name that no other process uses.
    """
    name = path.name if len(os.fsencode(path.name)) <= _LONGEST else os.fsdecode(os.fsencode(path.name)[:_LONGEST])
    return path.with_name(f"{name}.{os.getpid()}{ASIDE}" if of_process else name + ASIDE)


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists and the system allows it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append an object as a line of JSON to a file, whole or not at all.

    Raises:
        ValueError: the disk or the system refuses; the message names `path`.
    """
    data = (json.dumps(content, ensure_ascii=False) + "\n").encode(errors=SURROGATES)
    with writing(path):
        before = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write(data)
        except OSError:
            if path.exists():
                os.truncate(path, before)
            raise


def appended_lines(path: Path, keys: Collection[str], problem: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the lines of a file of `append_line`, parsed and as they are.

    A last line that is truncated, because the process was killed or is writing it, is left out.

    Args:
        path: file to be read.
        keys: keys that each object must have.
        problem: end of the message about a line that is no such object.

    Raises:
        ValueError: another line is no object with these keys.
    """
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not text.endswith(b"\n"):
            return
        try:
            line = json.loads(text)
            complete = set(keys) <= line.keys()
        except (ValueError, AttributeError):
            complete = False
        if not complete:
            raise ValueError(f"{path}: line {number} {problem}")
        yield line, text


def remove_truncated_line(path: Path) -> None:
    """Remove a truncated last line, which a killed process has left, before another line is appended."""
    data = path.read_bytes() if path.is_file() else b""
    if data and not data.endswith(b"\n"):
        write_bytes(path, data[: data.rfind(b"\n") + 1])
