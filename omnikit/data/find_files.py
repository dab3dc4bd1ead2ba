"""The one way to look through folders: hidden files never, recordings and other files told apart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from omnikit.audio.containers import is_sound

READABLE = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
)  # fmt: skip
"""Endings of sound files that can be read."""
FOREIGN = (
    ".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr", ".3gp", ".mka", ".mkv", ".mov", ".ac3", ".ape", ".wv", ".spx",
)  # fmt: skip
"""Endings of recordings that cannot be read: they are taken and then refused, so that nobody misses them unawares."""
MANIFESTS = (".csv", ".json", ".jsonl", ".parquet")
"""Endings of manifests that can be read."""
_HIDDEN = ("__MACOSX",)
_HEAD = 12  # bytes by which a file without such an ending is known


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to the system and not to the user, such as macOS' `._x.wav` and `.DS_Store`."""
    return name.startswith(".") or name in _HIDDEN


def visible(folder: Path, pattern: str) -> Iterator[Path]:
    """`folder.glob(pattern)` without what is hidden or lies in a hidden folder; in no order."""
    for path in folder.glob(pattern):
        if not any(map(is_hidden, path.relative_to(folder).parts)):
            yield path


def recordings(folder: Path, pattern: str = "*") -> list[Path]:
    """The visible files that fit a pattern and have the ending of a recording, sorted."""
    return sorted(path for path in visible(folder, pattern) if path.suffix.lower() in (*READABLE, *FOREIGN))


def with_other_ending(path: Path) -> Path | None:
    """A recording of the same name that is there in another format; None where there is none."""
    others = (path.with_name(path.stem + ending) for ending in (*READABLE, *FOREIGN) if ending != path.suffix)
    return next((other for other in others if os.path.isfile(other)), None)


def walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden, also behind links, each folder once.

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
    """Whether a file is to be taken for a recording: by its ending, else by its first bytes."""
    if path.suffix.lower() in (*READABLE, *FOREIGN):
        return True
    if not os.path.isfile(path):  # opening a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            return is_sound(file.read(_HEAD))
    except OSError:
        return False


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename}: the folder cannot be read ({error.strerror})")
