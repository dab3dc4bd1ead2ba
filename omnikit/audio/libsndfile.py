"""How libsndfile is given a file: through a view that may patch its header, and read in one direction."""

from __future__ import annotations

import io
from typing import BinaryIO

import soundfile

from omnikit.audio.containers import Patch

ENDLESS = 2**40
"""Bytes that a file pretends to have, so that no length guessed from its size is below the true one."""
_TAG = 128  # bytes of an ID3v1 tag, which is looked for at the end


class View:
    """The bytes of a file as libsndfile sees them.

    libsndfile calls these methods from C, where an exception would be printed and ignored. So none is raised; what the
    disk said last is kept in `error`.

    Args:
        file: open for reading; the view moves its position.
        size: of the file, in bytes.
        patches: bytes that stand in the place of its own.
        seeming_size: what libsndfile takes for the size; None = `size`.
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
        """soundfile asks whether this method is there, and calls `readinto`."""
        buffer = bytearray(max(0, min(count, self.size)))
        return bytes(buffer[: self.readinto(buffer)])

    def peek(self, at: int, count: int) -> bytes:
        """Up to `count` bytes from an offset on; fewer at the end. The position stays where it is."""
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
    """A sound file that is read in one direction.

    soundfile would seek after each block, which damaged and compressed files answer with errors or with other samples.
    """

    def seekable(self) -> bool:
        return False

    def end_is_there(self) -> bool:
        """Whether the last of the announced samples can be decoded. Nothing else can be read afterwards."""
        try:
            self.seek(self.frames - 1)
            return len(self.read(1, dtype="float32")) == 1
        except soundfile.LibsndfileError:
            return False


def _patched(data: bytes, start: int, patch: bytes) -> bytes:
    """`patch` in place of what stands from `start` on, which may be negative."""
    whole = bytearray(data)
    for place, byte in enumerate(patch, start):
        if 0 <= place < len(whole):
            whole[place] = byte
    return bytes(whole)
