"""Access to audio files by libsndfile: a view of a file that can patch the header, and reading in one direction."""

from __future__ import annotations

import io
from typing import BinaryIO

import soundfile

from omnikit.audio.containers import Patch

ENDLESS = 2**40
"""File size in bytes that is reported to libsndfile where the length of a file's sound is unknown; it is so large that
no length guessed from it is below the true one."""
_TAG = 128  # bytes of an ID3v1 tag, which libsndfile looks for at the file's end


class View:
    """A file-like view of an audio file, for libsndfile, in which some bytes and the size can be replaced.

    libsndfile calls these methods from C, where an exception would be printed and ignored. So none is raised; `error`
    holds the last error of the disk.

    Args:
        file: file that is open for reading; the view moves its position.
        size: size of the file in bytes.
        patches: offsets and the bytes that replace those of the file there.
        seeming_size: file size that is reported to libsndfile; None = `size`.
    """

    def __init__(self, file: BinaryIO, size: int, patches: tuple[Patch, ...] = (), seeming_size: int | None = None):
        self.file, self.size, self.patches = file, size, patches
        self.seeming_size = size if seeming_size is None else seeming_size
        self.error: OSError | None = None
        self.at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.seeming_size}[whence]
        self.at = min(max(0, start + offset), 2**62)
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: bytearray | memoryview) -> int:
        behind = self.at >= self.seeming_size - _TAG
        data = self.peek(self.at - self.seeming_size + self.size if behind else self.at, len(buffer))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def read(self, count: int) -> bytes:
        """Read up to `count` bytes at the current position; soundfile requires this method but calls `readinto`."""
        buffer = bytearray(max(0, min(count, self.size)))
        return bytes(buffer[: self.readinto(buffer)])

    def peek(self, at: int, count: int) -> bytes:
        """Return up to `count` bytes from offset `at` on, fewer at the end, without moving the position."""
        count = max(0, min(count, self.size - at))
        try:
            self.file.seek(max(0, at))
            data = self.file.read(count)
        except OSError as error:
            self.error = error
            return b""
        for start, patch in self.patches:
            if start < at + count and at < start + len(patch):
                data = _patched(data, start - at, patch)
        return data


class Stream(soundfile.SoundFile):
    """An audio file that is only read forward.

    soundfile would seek after each block, which fails or yields other samples in damaged and in compressed files.
    """

    def seekable(self) -> bool:
        return False

    def end_is_there(self) -> bool:
        """Return whether the last of the announced samples can be decoded; nothing can be read afterwards."""
        try:
            self.seek(self.frames - 1)
            return len(self.read(1, dtype="float32")) == 1
        except soundfile.LibsndfileError:
            return False


def _patched(data: bytes, start: int, patch: bytes) -> bytes:
    """Return a copy of `data` whose bytes from index `start` (may be negative) on are overwritten with `patch`."""
    whole = bytearray(data)
    for place, byte in enumerate(patch, start):
        if 0 <= place < len(whole):
            whole[place] = byte
    return bytes(whole)
