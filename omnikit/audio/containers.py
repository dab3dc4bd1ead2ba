"""Read how many bytes of sound the header of an audio container announces.

These few header fields tell a complete file from a truncated one, and from a stream whose writer could not seek back to
fill them in.

Sources: Microsoft and IBM 1991 (RIFF), EBU Tech 3306 (RF64), Sony's Wave64 paper, Apple's AIFF-C and CAF
specifications, Sun's audio(5), RFC 3533 (Ogg).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from omnikit.audio.mp3 import Peek, frame_bytes

Patch = tuple[int, bytes]
"""A patch of a file: an offset and the bytes that replace those stored there."""
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # ends the GUIDs of all Wave64 chunks but the first
_MAX_CHUNKS = 4096  # chunks read before the sound; a damaged file may seem to have millions
_LIMITS = (2**31, 2**32)
"""Values in bytes near which a size in a header means "unknown"; sox, arecord and ffmpeg write them into pipes."""
_NEAR = 4096
_AU_HEAD = 24
_OGG_PAGE = 65307  # maximum length of a page in bytes
_OGG_HEAD = 27
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Announced:
    """Place and size of the sound in an audio file, as its header announces them."""

    begin: int  # offset of the first byte of sound
    size: int | None  # bytes; None = unknown
    patches: tuple[Patch, ...] = ()  # header fields with which libsndfile reads the sound up to the file's end


@dataclass(frozen=True)
class _Layout:
    """Layout of an audio container that consists of chunks, each with a name, a size, content and padding."""

    start: int  # offset of the first chunk
    number: str  # struct code of a size
    data: bytes  # name of the chunk with the sound
    align: int = 2
    counts_head: bool = False  # the size includes name and size


_LAYOUTS = {
    (b"RIFF", b"WAVE"): _Layout(12, "<I", b"data"),
    (b"RIFX", b"WAVE"): _Layout(12, ">I", b"data"),
    (b"RF64", b"WAVE"): _Layout(12, "<I", b"data"),
    (b"FORM", b"AIFF"): _Layout(12, ">I", b"SSND"),
    (b"FORM", b"AIFC"): _Layout(12, ">I", b"SSND"),
    (b"riff", b"\xa5\xd6\x28\xdb"): _Layout(40, "<Q", b"data" + _W64_TAIL, 8, counts_head=True),
    (b"caff", b"desc"): _Layout(8, ">Q", b"data", 1),
}


def announced(peek: Peek, size: int) -> Announced | None:
    """Read the size of the sound from the header of an audio file of `size` bytes.

    Returns None if the format has no such header field or the header is damaged.
    """
    head = peek(0, 16)
    if head[:4] == b".snd" and len(head) >= 12:
        begin, stored = struct.unpack(">II", head[4:12])
        return _interpreted(begin, stored, [(8, ">I")], size, peek, None) if begin >= _AU_HEAD else None
    layout = _LAYOUTS.get((head[:4], head[8:12]))
    if layout is None:
        return None
    for at, name, stored in _chunks(peek, layout, layout.start, size):
        begin = at + len(name) + struct.calcsize(layout.number)
        if name == layout.data:
            fields = [(at + len(name), layout.number)]
            if head[:4] == b"RF64" and stored == 2**32 - 1 and peek(12, 4) == b"ds64":
                stored = int.from_bytes(peek(28, 8), "little")
                fields = [(28, "<Q")]
            return _interpreted(begin, stored - (begin - at if layout.counts_head else 0), fields, size, peek, layout)
    return None


def ends_whole(peek: Peek, size: int) -> bool:
    """Return whether the last page of an Ogg file is complete and marked as the end of its stream."""
    start = max(0, size - 2 * _OGG_PAGE)
    tail = peek(start, size - start)
    at = tail.rfind(b"OggS")
    while at >= 0 and (tail[at + 4 : at + 5] != b"\0" or tail[at + 5 : at + 6] > b"\7"):  # "OggS" inside a packet
        at = tail.rfind(b"OggS", 0, at)
    head = tail[at : at + _OGG_HEAD]
    if at < 0 or len(head) < _OGG_HEAD or not head[5] & 4:
        return False
    lengths = tail[at + _OGG_HEAD : at + _OGG_HEAD + head[26]]
    return len(lengths) == head[26] and len(tail) >= at + _OGG_HEAD + head[26] + sum(lengths)


def is_intact(peek: Peek, size: int) -> bool:
    """Return whether an Ogg file is one stream without a gap: consecutive pages, each with a correct checksum."""
    at, last = 0, None
    while at < size:
        page = peek(at, _OGG_PAGE)
        length = _page_bytes(page)
        if not length or length > len(page) or _checksum(page[:length]) != page[22:26]:
            return False
        serial, number = struct.unpack("<II", page[14:22])
        if last is None:
            last = serial, -1
        if (serial, number) != (last[0], last[1] + 1) or bool(page[5] & 2) != (number == 0):
            return False
        last, at = (serial, number), at + length
        if page[5] & 4:
            return at == size
    return False


def _page_bytes(page: bytes) -> int:
    """Return the length in bytes of the Ogg page that begins with the given bytes; 0 if they begin no page."""
    if len(page) < _OGG_HEAD or page[:5] != b"OggS\0":
        return 0
    return _OGG_HEAD + page[26] + sum(page[_OGG_HEAD : _OGG_HEAD + page[26]])


def _checksum(page: bytes) -> bytes:
    """Compute the checksum of an Ogg page (RFC 3533): zlib's CRC-32 with the bits of each byte reversed and an initial
    value of 0."""
    bare = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED)
    return (zlib.crc32(bare, 0xFFFFFFFF) ^ 0xFFFFFFFF).to_bytes(4, "big").translate(_REVERSED)


def is_sound(head: bytes) -> bool:
    """Return whether a file's first 12 bytes belong to a recording format that libsndfile reads."""
    if (head[:4], head[8:12]) in _LAYOUTS or head[:4] in (b"fLaC", b"OggS", b".snd") or head[:3] == b"ID3":
        return True
    return frame_bytes(head) > 0


def _chunks(peek: Peek, layout: _Layout, at: int, size: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield the offset, name and stored size of each chunk of an audio container, from offset `at` on."""
    names = len(layout.data)
    head = names + struct.calcsize(layout.number)
    for _ in range(_MAX_CHUNKS):
        found = peek(at, head)
        if len(found) < head:
            return
        (stored,) = struct.unpack(layout.number, found[names:])
        yield at, found[:names], stored
        at += stored if layout.counts_head else head + stored
        at += -at % layout.align
        if at > size:
            return


def _interpreted(
    begin: int, stored: int, fields: list[tuple[int, str]], size: int, peek: Peek, layout: _Layout | None
) -> Announced:
    """Interpret the size that an audio file's header states for the sound.

    Where it means "unknown", the result patches the given header fields with the number of bytes that the file has.
    """
    there = size - begin
    unknown = stored <= 0 or stored >= 2**62 or any(abs(stored - limit) <= _NEAR for limit in _LIMITS)
    if not unknown or there <= 0 or (stored == 0 and layout is not None and _are_chunks(peek, layout, begin, size)):
        return Announced(begin, stored)
    head = len(layout.data) + struct.calcsize(layout.number) if layout is not None and layout.counts_head else 0
    return Announced(begin, None, tuple((at, _packed(number, there + head)) for at, number in fields))


def _packed(code: str, value: int) -> bytes:
    return struct.pack(code, min(value, 256 ** struct.calcsize(code) - 1))


def _are_chunks(peek: Peek, layout: _Layout, begin: int, size: int) -> bool:
    """Return whether nothing but chunks follow up to the file's end, so that a stored size of 0 means an empty sound
    and not an unknown length."""
    head, end = len(layout.data) + struct.calcsize(layout.number), 0
    for at, name, stored in _chunks(peek, layout, begin, size):
        if not all(32 <= byte < 127 for byte in name):
            return False
        end = at + head + stored
    return abs(end - size) <= 1  # the last one may lack its padding
