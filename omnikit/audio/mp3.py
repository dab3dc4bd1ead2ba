"""Compare the number of frames that an MP3 file announces with the number that it has.

The header in the first frame (Xing, Info or VBRI) may count only a part of the file, for example where files were
joined.

Sources: ISO 11172-3 and 13818-3 (frame headers), Xing's and Fraunhofer's descriptions of their headers, id3.org.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

Peek = Callable[[int, int], bytes]
"""A function (offset, count) -> bytes that reads `count` bytes of a file from an offset on, fewer at the file's end."""
_BITRATES = (
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
)  # kbit/s of layer 3, in MPEG 2 and 2.5, and in MPEG 1
_RATES = (44100, 48000, 32000, 0)  # Hz, of MPEG 1
_HEAD = 4
_START = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
_CHUNK = 2**18


@dataclass(frozen=True)
class Index:
    """The header in an MP3 file's first frame that announces the number of frames."""

    place: int  # offset of its four-letter name
    frames: int  # number of frames that follow; 0 where the header does not say or libmpg123 ignores it
    end: int  # offset behind the frame that holds it


def frame_bytes(head: bytes) -> int:
    """Return the length in bytes of the MPEG layer 3 frame that begins with the given bytes, else 0."""
    if len(head) < _HEAD or not _START.match(head):
        return 0
    version = head[1] >> 3 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    rate = _RATES[head[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[version]
    bitrate = 1000 * _BITRATES[version == 3][head[2] >> 4]
    return (144 if version == 3 else 72) * bitrate // rate + (head[2] >> 1 & 1) if rate and bitrate else 0


def find_index(peek: Peek) -> Index | None:
    """Find the Xing, Info or VBRI header of an MP3 file, behind its ID3v2 tags; None if there is none.

    Without one libsndfile guesses the length from the size of the file, embedded pictures included.
    """
    at = 0
    while (tag := peek(at, 10))[:3] == b"ID3" and len(tag) == 10:
        at += 10 + sum((byte & 127) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
    frame = peek(at, 64)
    place = max(frame.find(name) for name in (b"Xing", b"Info", b"VBRI"))
    if place < 0:
        return None
    flags, frames = struct.unpack(">II", frame[place + 4 : place + 12].ljust(8, b"\0"))
    is_used = flags & 1 and place == _index_place(frame) and frame[place : place + 1] != b"V"
    return Index(at + place, frames if is_used else 0, at + max(frame_bytes(frame), place + 4))


def _index_place(frame: bytes) -> int:
    """Return the offset within an MP3 frame at which libmpg123 looks for a Xing or Info header: behind the frame
    header and the side information."""
    mono = frame[3] >> 6 == 3
    if frame[1] >> 3 & 3 == 3:
        return _HEAD + (17 if mono else 32)
    return _HEAD + (9 if mono else 17)


def is_exceeded(index: Index, peek: Peek, size: int) -> bool:
    """Return whether an MP3 file holds more frames than its Xing, Info or VBRI header announces.

    The result is True also if the header announces no number. A file has more frames if several files were joined, with
    or without tags or stray bytes between them, or if the header is wrong. One frame more is tolerated, because
    encoders differ in whether they count the frame that holds the header.

    Args:
        index: the header.
        peek: function that reads bytes of the file.
        size: size of the file in bytes.
    """
    if not index.frames:
        return True
    at, count = index.end, 0
    chunk, start = b"", at
    while count <= index.frames + 1:
        if at + _HEAD > start + len(chunk):
            chunk, start = peek(at, _CHUNK), at
            if len(chunk) < _HEAD:
                return False
        head = chunk[at - start : at - start + _HEAD]
        length = frame_bytes(head)
        if length and at + length <= size and _follows(head, peek, at + length, size, chunk, start):
            at, count = at + length, count + 1
        else:
            found = _START.search(chunk, at - start + 1)
            at = start + (found.start() if found else max(at - start + 1, len(chunk) - 1))
    return True


def _follows(head: bytes, peek: Peek, at: int, size: int, chunk: bytes, start: int) -> bool:
    """Return whether offset `at` of an MP3 file holds a frame of the same kind as the one with the header `head`, a
    tag, or the end of the file."""
    behind = at - start
    following = chunk[behind : behind + _HEAD] if behind + _HEAD <= len(chunk) else peek(at, _HEAD)
    if at >= size or following[:3] in (b"TAG", b"ID3") or following == b"APET":
        return True
    return bool(frame_bytes(following)) and head[1] == following[1] and (head[2] ^ following[2]) & 0x0C == 0
