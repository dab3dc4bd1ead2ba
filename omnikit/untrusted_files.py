"""Reading of files that somebody else wrote: only regular files, up to a size limit, and none outside their folder."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from omnikit.errors import one_line

MEBIBYTE = 2**20
LARGEST_JSON = 16 * MEBIBYTE
"""Maximum size of a JSON file in bytes; the file lists of the largest published models have a tenth of it."""
_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


def check_regular(file: str | Path, most: int | None = None) -> None:
    """Refuse a file that reading could hang on or that is too large to be read.

    Args:
        file: a path; links are followed.
        most: maximum size in bytes; None = no limit.

    Raises:
        ValueError: the file is missing, not a regular file, or too large.
    """
    try:
        _check(file, os.stat(file), most)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None


def read_bytes(file: str | Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises:
        ValueError: the file is missing, not a regular file, or too large.
    """
    try:  # without O_NONBLOCK, opening a named pipe waits until some process writes to it
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as stream:
            _check(file, os.fstat(stream.fileno()), most)
            return stream.read(most + 1)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None


def read_text(file: str | Path, most: int) -> str:
    """Return the text of a regular UTF-8 file of at most `most` bytes, without a byte order mark.

    Raises:
        ValueError: the file is missing, not a regular file, too large, or not UTF-8.
    """
    try:
        return read_bytes(file, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 (byte {error.start})") from None


def read_json(file: str | Path, most: int = LARGEST_JSON) -> Any:
    """Return the value in a JSON file of at most `most` bytes.

    Raises:
        ValueError: the file is missing, not a regular file, too large, or not JSON.
    """
    text = read_text(file, most)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({one_line(error)})") from None


def inside(folder: str | Path, name: str) -> Path:
    """Return the path of the regular file `name` of a folder, refusing links that lead out of the folder.

    A link is followed if it ends in the folder. In the cache of the model hub, where a folder
    `models--owner--name/snapshots/<revision>` consists of links, it may also end in `blobs` of the same repository.

    Raises:
        ValueError: the file is missing, not a regular file, or lies elsewhere.
    """
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise ValueError(f"{folder}: {name!r} is not the name of a file in it")
    file = Path(folder) / name
    if not os.path.lexists(file):
        raise ValueError(f"{folder}: {name} is missing")
    end = Path(os.path.realpath(file))
    if not any(end.is_relative_to(root) for root in _roots(Path(os.path.realpath(folder)))):
        raise ValueError(f"{folder}: {name} is a link to {end}, outside the folder; put a copy in its place")
    check_regular(file)
    return file


def _roots(folder: Path) -> list[Path]:
    snapshots, repository = folder.parent, folder.parent.parent
    cached = snapshots.name == "snapshots" and repository.name.startswith("models--")
    return [folder, *([repository / "blobs"] if cached else [])]


def _check(file: str | Path, about: os.stat_result, most: int | None) -> None:
    kind = next((words for is_kind, words in _KINDS if is_kind(about.st_mode)), None)
    if kind is not None:
        raise ValueError(f"{file}: is {kind}, not a regular file")
    if most is not None and about.st_size > most:
        raise ValueError(f"{file}: has {about.st_size} bytes, more than the {most} that such a file may have")
