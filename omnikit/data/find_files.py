"""Searches folders for recordings and other files; hidden files and folders are always ignored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from omnikit.audio.containers import is_sound

READABLE = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
)  # fmt: skip
"""File name endings of the sound formats that can be decoded."""
FOREIGN = (
    ".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr", ".3gp", ".mka", ".mkv", ".mov", ".ac3", ".ape", ".wv", ".spx",
)  # fmt: skip
"""File name endings of sound formats that cannot be decoded.

Such files are found and then reported as unreadable, so that their absence from the results is noticed.
"""
MANIFESTS = (".csv", ".json", ".jsonl", ".parquet")
"""File name endings of the manifest formats that can be read."""
_HIDDEN = ("__MACOSX",)
_HEAD = 12  # bytes at the beginning of a file that identify its sound format


def is_hidden(name: str) -> bool:
    """Return whether a file or folder name is hidden or a system's own, such as `._x.wav` and `.DS_Store` of macOS."""
    return name.startswith(".") or name in _HIDDEN


def visible(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield the paths below a folder that match a glob pattern and are not hidden, in arbitrary order.

    A path is hidden if its own name or that of a folder between it and `folder` is.
    """
    for path in folder.glob(pattern):
        if not any(map(is_hidden, path.relative_to(folder).parts)):
            yield path


def recordings(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the sorted paths of a folder that match a glob pattern, are not hidden and have a sound file's ending."""
    return sorted(path for path in visible(folder, pattern) if path.suffix.lower() in (*READABLE, *FOREIGN))


def with_other_ending(path: Path) -> Path | None:
    """Return an existing recording of the same name but another file name ending; None if there is none."""
    others = (path.with_name(path.stem + ending) for ending in (*READABLE, *FOREIGN) if ending != path.suffix)
    return next((other for other in others if os.path.isfile(other)), None)


def walk(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder that is not hidden, in sorted order.

    Symbolic links are followed; a folder that is reached twice is visited once.

    Raises:
        ValueError: a folder cannot be read.
    """
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        here = os.path.realpath(place)
        folders[:] = [] if here in seen else sorted(name for name in folders if not is_hidden(name))
        yield from () if here in seen else (Path(place) / name for name in sorted(files) if not is_hidden(name))
        seen.add(here)


def is_recording(path: Path) -> bool:
    """Return whether a file is a recording, judged by its name's ending or else by its first bytes."""
    if path.suffix.lower() in (*READABLE, *FOREIGN):
        return True
    if not os.path.isfile(path):  # opening a named pipe would block until it is written to
        return False
    try:
        with path.open("rb") as file:
            return is_sound(file.read(_HEAD))
    except OSError:
        return False


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename}: the folder cannot be read ({error.strerror})")
