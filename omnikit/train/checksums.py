"""SHA-256 checksums of a folder's files: written when the folder is complete, compared before it is read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

SUMS = "SUMS.json"
_CANNOT_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


Sums = dict[str, dict[str, int | str]]
"""Size in bytes and SHA-256 of files by their path in a folder."""


def write_sums(folder: Path, known: Sums | None = None) -> None:
    """Flush a folder to the disk and write the size and the SHA-256 of each of its files to `SUMS.json`.

    Args:
        known: sums of files that other processes have written and flushed.
    """
    known = known or {}
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in found if name not in known]
    with ThreadPoolExecutor() as pool:  # hashlib and fsync let other threads run
        listed = dict(zip(names, pool.map(lambda name: flushed(folder / name), names), strict=True))
    listed = dict(sorted({**known, **listed}.items()))
    with (folder / SUMS).open("w", encoding="utf-8") as file:
        json.dump(listed, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for each in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        flush_folder(each)


def flush_folder(folder: Path) -> None:
    """Flush a folder's directory entries to the disk, on file systems that support it."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:  # some network file systems flush files alone
            raise
    finally:
        os.close(number)


def find_damage(folder: Path, only: str | None = None) -> str | None:
    """Compare the files of a folder with the sizes and checksums in its `SUMS.json`.

    Args:
        only: name of the only file whose checksum is computed, which is fast; for the others only sizes are compared.

    Returns:
        The name and the damage of a damaged file, or None if all files match.
    """
    try:
        entries = json.loads((folder / SUMS).read_text(encoding="utf-8")).items()
        listed = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries}
    except FileNotFoundError:
        return f"{SUMS} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{SUMS} cannot be read"
    for name, (size, _) in listed.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (found := (folder / name).stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
    names = [name for name in listed if only in (None, name)]
    with ThreadPoolExecutor() as pool:
        problems = pool.map(lambda name: _other_sum(folder / name, listed[name][1]), names)
        return next((f"{name} {what}" for name, what in zip(names, problems, strict=True) if what is not None), None)


def find_unreadable(folder: Path, expected: Iterable[str]) -> str | None:
    """Return the damage that is visible without checksums in the `.ckpt` files of a folder.

    Files of `torch.save` are zip archives, which hold a CRC-32 of each tensor; SpeechBrain's others are short YAML.

    Args:
        expected: names of files that must exist; other `.ckpt` files of the folder are checked, too.

    Returns:
        The name and the damage of a damaged file, or None if no damage is visible.
    """
    for name in sorted({*expected, *(path.name for path in folder.glob("*.ckpt"))}):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if not _readable(folder / name):
            return f"{name} cannot be read"
    return None


def flushed(path: Path) -> dict[str, int | str]:
    """Flush a file to the disk, and return its size in bytes and its SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _other_sum(path: Path, sha256: str) -> str | None:
    try:
        return None if _sha256(path) == sha256 else "has another sum than when it was saved"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _readable(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
        if not head.startswith(b"PK"):
            value = yaml.safe_load(head.decode())
            cut = isinstance(value, dict) and not head.endswith(b"\n")  # yaml.dump ends lines of mappings
            return value is not None and not cut
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, EOFError, RuntimeError, struct.error, yaml.YAMLError, zipfile.BadZipFile, zlib.error):
        return False
