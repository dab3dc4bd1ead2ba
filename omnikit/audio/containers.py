"""How many bytes of sound a container announces: the few header fields that tell a whole file from one cut short, and
from a stream whose writer could not go back to fill them in.

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
"""Bytes that stand in a header's place, and where."""
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of all its chunk names but the first
_MAX_CHUNKS = 4096  # before the sound; a damaged file may seem to have millions
_LIMITS = (2**31, 2**32)
"""sox, arecord, ffmpeg and others write a size near one of these into a pipe."""
_NEAR = 4096
_AU_HEAD = 24
_OGG_PAGE = 65307  # bytes of the longest page
_OGG_HEAD = 27
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Announced:
    """The sound's first byte, the announced count of bytes (None: unknown), and what helps libsndfile to all of it."""

    begin: int
    size: int | None
    patches: tuple[Patch, ...] = ()


@dataclass(frozen=True)
class _Layout:
    """A container of chunks: name, size, content, padding."""

    start: int  # of the first chunk
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
    """Read the sizes that a header announces for a file of `size` bytes; None if it has no such field or is damaged."""
    head = peek(0, 16)
    if head[:4] == b".snd" and len(head) >= 12:
        begin, told = struct.unpack(">II", head[4:12])
        return _judged(begin, told, [(8, ">I")], size, peek, None) if begin >= _AU_HEAD else None
    layout = _LAYOUTS.get((head[:4], head[8:12]))
    if layout is None:
        return None
    for at, name, told in _chunks(peek, layout, layout.start, size):
        begin = at + len(name) + struct.calcsize(layout.number)
        if name == layout.data:
            fields = [(at + len(name), layout.number)]
            if head[:4] == b"RF64" and told == 2**32 - 1 and peek(12, 4) == b"ds64":
                told = int.from_bytes(peek(28, 8), "little")
                fields = [(28, "<Q")]
            return _judged(begin, told - (begin - at if layout.counts_head else 0), fields, size, peek, layout)
    return None


def ends_whole(peek: Peek, size: int) -> bool:
    """Whether an Ogg file's last page is complete and marked as the end of its stream."""
    start = max(0, size - 2 * _OGG_PAGE)
    tail = peek(start, size - start)
    at = tail.rfind(b"OggS")
    while at >= 0 and (tail[at + 4 : at + 5] != b"\0" or tail[at + 5 : at + 6] > b"\7"):  # the letters inside a packet
        at = tail.rfind(b"OggS", 0, at)
    head = tail[at : at + _OGG_HEAD]
    if at < 0 or len(head) < _OGG_HEAD or not head[5] & 4:
        return False
    lengths = tail[at + _OGG_HEAD : at + _OGG_HEAD + head[26]]
    return len(lengths) == head[26] and len(tail) >= at + _OGG_HEAD + head[26] + sum(lengths)


def is_intact(peek: Peek, size: int) -> bool:
    """Whether an Ogg file is one stream without a gap: its pages follow each other, and their checksums are right."""
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
    """Length of the Ogg page that begins here; 0 if none does."""
    if len(page) < _OGG_HEAD or page[:5] != b"OggS\0":
        return 0
    return _OGG_HEAD + page[26] + sum(page[_OGG_HEAD : _OGG_HEAD + page[26]])


def _checksum(page: bytes) -> bytes:
    """RFC 3533's checksum of an Ogg page; it is zlib's with the bits of each byte reversed, and begins with 0."""
    bare = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED)
    return (zlib.crc32(bare, 0xFFFFFFFF) ^ 0xFFFFFFFF).to_bytes(4, "big").translate(_REVERSED)


def is_sound(head: bytes) -> bool:
    """Whether a file's first 12 bytes are those of a format that libsndfile reads and people record in."""
    if (head[:4], head[8:12]) in _LAYOUTS or head[:4] in (b"fLaC", b"OggS", b".snd") or head[:3] == b"ID3":
        return True
    return frame_bytes(head) > 0


def _chunks(peek: Peek, layout: _Layout, at: int, size: int) -> Iterator[tuple[int, bytes, int]]:
    """Offset, name and stored size of chunk after chunk."""
    names = len(layout.data)
    head = names + struct.calcsize(layout.number)
    for _ in range(_MAX_CHUNKS):
        found = peek(at, head)
        if len(found) < head:
            return
        (told,) = struct.unpack(layout.number, found[names:])
        yield at, found[:names], told
        at += told if layout.counts_head else head + told
        at += -at % layout.align
        if at > size:
            return


def _judged(
    begin: int, told: int, fields: list[tuple[int, str]], size: int, peek: Peek, layout: _Layout | None
) -> Announced:
    """The announced count of bytes; where it means "unknown", the fields with that of the bytes which are there."""
    there = size - begin
    unknown = told <= 0 or told >= 2**62 or any(abs(told - limit) <= _NEAR for limit in _LIMITS)
    if not unknown or there <= 0 or (told == 0 and layout is not None and _are_chunks(peek, layout, begin, size)):
        return Announced(begin, told)
    head = len(layout.data) + struct.calcsize(layout.number) if layout is not None and layout.counts_head else 0
    return Announced(begin, None, tuple((at, _packed(number, there + head)) for at, number in fields))


def _packed(code: str, value: int) -> bytes:
    return struct.pack(code, min(value, 256 ** struct.calcsize(code) - 1))


def _are_chunks(peek: Peek, layout: _Layout, begin: int, size: int) -> bool:
    """Whether nothing but further chunks follow, up to the end: the sound is empty and not of unknown length."""
    head, end = len(layout.data) + struct.calcsize(layout.number), 0
    for at, name, told in _chunks(peek, layout, begin, size):
        if not all(32 <= byte < 127 for byte in name):
            return False
        end = at + head + told
    return abs(end - size) <= 1  # the last one may lack its padding
