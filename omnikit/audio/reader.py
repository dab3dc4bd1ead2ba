"""Read, measure and check recordings; all commands, recipes and trainings read audio files with this module.

A recording is a path or the bytes of a file. libsndfile decodes it block by block and never beyond a limit, so that a
small file cannot fill the memory. docs/data_rules.md lists which files are accepted, accepted with a note, and refused.
"""

from __future__ import annotations

import io
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from omnikit.audio.containers import announced, ends_whole, is_intact
from omnikit.audio.libsndfile import ENDLESS, Stream, View
from omnikit.audio.mp3 import Peek, find_index, is_exceeded

Source = str | Path | bytes
"""Path of an audio file, or its content as bytes."""
READER_VERSION = 1
"""Version of the rules that accept or refuse audio files; cached verdicts of another version are not used."""
LONGEST = 600.0
"""Maximum length of a recording in seconds; longer ones are refused, whatever the caller allows."""
MOST_VALUES = 2**26
"""Maximum number of audio samples that are decoded of a recording, the sum over all channels: a little more than 600 s
of stereo at 48 kHz."""
CLIPPED_SHARE = 0.01
"""Minimum share of full-scale samples for which a recording counts as clipped."""
MOST_LACKING = 80
"""Maximum number of bytes of sound that a header may announce beyond the file's end. Firmware may include the header of
44 to 80 bytes in the size, and the padding of an odd length may be missing. At 16 kHz and 16 bit 80 bytes are 2.5 ms.
"""
NOTES = {
    "over full scale": "samples are far beyond 1, such as integers stored as floats; they are used unchanged",
    "channels cancel": "the channels are of opposite phase, so that almost nothing is left when they are mixed",
    "less than announced": "an MP3 is truncated or ends in bytes that are not audio; the decodable part is used",
}
"""Mapping from the name of each note that a usable recording may get to an explanation for the user."""
_OVER, _CANCEL, _LESS = NOTES
_BLOCK = 2**18  # values
_MP3_BLOCK = 1152  # samples of one frame: where decoding fails, the frames before are still returned
_FULL_SCALE = 32767 / 32768
_FAR_OVER = 16.0  # 24 dB over full scale: more than loud music in floats has, less than integers of 16 bit have
_LEFT = 1e-3  # channels cancel if their mix has less than this share of their mean power
_UNKNOWN = 2**36  # samples; a greater length is libsndfile's "unknown" or its guess for an `ENDLESS` file
_WIDTHS = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "ULAW": 1, "ALAW": 1}
"""Mapping from each encoding whose decoding cannot fail, as any bytes are valid samples, to bytes per sample."""


class Unusable(ValueError):
    """Error raised when a recording cannot be used.

    The message gives the recording's name and the cause in one line. `reason` is the key of
    `omnikit.data.skipped.REASONS` under which the recording is counted. `transient` says whether the same file may be
    usable later, because it is missing or could not be read; otherwise its content would have to change.
    """

    def __init__(self, reason: str, message: str, *, transient: bool = False):
        super().__init__(message)
        self.reason, self.transient = reason, transient


@dataclass(frozen=True)
class Sound:
    """Length, format and notes of a usable recording, and optionally its samples."""

    frames: int  # N, samples of each channel
    rate: int  # Hz
    channels: int
    notes: tuple[str, ...] = ()  # keys of `NOTES`
    clipped: bool = False  # False also where nothing was decoded
    mono: np.ndarray | None = None  # [N] float32, the mean of the channels; None where the samples were not kept

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def read(source: Source, name: str, max_seconds: float | None = None) -> Sound:
    """Decode a recording to a mono waveform at the recording's own sample rate.

    Args:
        source: path or bytes of an audio file in any format that libsndfile reads.
        name: name of the recording in messages.
        max_seconds: maximum length; longer recordings are refused. None = `LONGEST`.

    Raises:
        Unusable: missing, empty, unreadable (no audio, damaged or cut short) or too long.
    """
    with _opened(source, name) as recording:
        return recording.decode(_limit(max_seconds), keep=True)


def measure(source: Source, name: str, max_seconds: float | None = None, *, decode_all: bool = False) -> Sound:
    """Return the length and format of a recording without its samples, or raise the error that `read` would raise.

    Files are decoded only where necessary. For integer samples in wav and similar containers, whose decoding cannot
    fail, and for FLAC only the header and the last sample are read, so damage in the middle of a FLAC file is not
    found. For Ogg the checksums of all pages are verified instead.

    Args:
        source, name, max_seconds: see `read`.
        decode_all: decode all files completely.

    Raises:
        Unusable: see `read`.
    """
    limit = _limit(max_seconds)
    if not decode_all:
        with _opened(source, name) as recording:
            if recording.is_trusted():
                return recording.announced_sound(limit)
    with _opened(source, name) as recording:
        return recording.decode(limit, keep=False)


def _limit(max_seconds: float | None) -> float:
    return LONGEST if max_seconds is None else min(max_seconds, LONGEST)


@contextmanager
def _opened(source: Source, name: str) -> Iterator[_Recording]:
    if isinstance(source, bytes):
        yield _Recording(io.BytesIO(source), len(source), name)
        return
    path = Path(source)
    if "\0" in str(path):
        raise Unusable("missing", f"{name!r}: no file can have this name")
    if not _is_utf8(path):
        raise Unusable("unreadable", f"{name}: its name is not UTF-8")
    try:
        _check_kind(path, name)
        with path.open("rb") as file:
            yield _Recording(file, path.stat().st_size, name)
    except (FileNotFoundError, NotADirectoryError):
        raise Unusable("missing", f"{name}: no such file", transient=True) from None
    except OSError as error:
        raise Unusable("unreadable", f"{name}: cannot be read ({error.strerror})", transient=True) from None


def _check_kind(path: Path, name: str) -> None:
    """Refuse a path that is a folder, a pipe or a device; opening a pipe or a device might block."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise Unusable("missing", f"{name}: {kind}, not a sound file", transient=True)


def _is_utf8(path: Path) -> bool:
    """Return whether a file's name is UTF-8 and can be written to manifests; Python uses surrogates for other bytes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in str(path))


class _Recording:
    """An open recording that can be decoded once."""

    def __init__(self, file: BinaryIO, size: int, name: str):
        self.name, self.size = name, size
        if not size:
            raise Unusable("empty", f"{name}: empty file (0 bytes)")
        peek = View(file, size).peek
        self.header = announced(peek, size)
        self.stream = self._open(View(file, size, () if self.header is None else self.header.patches))
        self.is_mp3 = self.stream.format == "MP3"
        if self.is_mp3:
            self._open_mp3(file, size, peek)
        if self.stream.format == "OGG" and not ends_whole(peek, size):
            raise self._unreadable("cut short: its last page is missing")
        self.rate, self.channels = self.stream.samplerate, self.stream.channels
        self.expected = self.stream.frames if self.stream.frames < _UNKNOWN else None
        self._check_bytes()

    def is_trusted(self) -> bool:
        """Return whether the length that a recording's header announces is certain to be the decoded one.

        Nothing can be decoded afterwards.
        """
        if not self.expected:
            return False
        if self.stream.format == "FLAC":
            return self.stream.end_is_there()
        if self.stream.format == "OGG":
            return is_intact(self.view.peek, self.size) and self.stream.end_is_there()
        width = _WIDTHS.get(self.stream.subtype)
        if width is None or self.header is None:
            return False
        return self.header.begin + self.expected * self.channels * width <= self.size and self.stream.end_is_there()

    def announced_sound(self, limit: float) -> Sound:
        """Return the length, sample rate and channels of a recording from its header, without decoding.

        Raises:
            Unusable: the recording is too long.
        """
        self._check_length(self.expected, limit)
        return Sound(self.expected, self.rate, self.channels)

    def decode(self, limit: float, *, keep: bool) -> Sound:
        """Decode a recording of at most `limit` seconds; see `omnikit.audio.reader.read`.

        Args:
            keep: whether the result holds the mono samples.
        """
        if self.expected and not self.is_mp3:
            self._check_announced(limit)
        tally, kept, failure = _Tally(self.channels), [], None
        try:
            for block in self._blocks():
                mono = tally.add(block)
                self._check_length(tally.frames, limit, "more than ")
                kept += [mono] if keep else []
        except soundfile.LibsndfileError as error:
            failure = error.error_string
        self._check_disk()
        less = failure is not None or tally.frames < (self.expected or 0)
        if less and not (self.is_mp3 and tally.frames):
            raise self._unreadable(self._lacking(tally.frames, failure))
        if not tally.frames:
            raise Unusable("empty", f"{self.name}: holds no audio (0 samples)")
        if not tally.finite:
            raise self._unreadable("holds samples that are no numbers (NaN or infinite)")
        notes = (*tally.notes(), *([_LESS] if less else []))
        mono = np.concatenate(kept) if keep else None
        return Sound(tally.frames, self.rate, self.channels, notes, tally.clipped, mono)

    def _open(self, view: View) -> Stream:
        self.view = view
        try:
            stream = Stream(view)
        except soundfile.SoundFileError as error:
            self._check_disk()
            why = getattr(error, "error_string", str(error))
            raise self._unreadable(f"not an audio file that can be read ({why})") from None
        if stream.samplerate < 1 or stream.channels < 1:
            raise self._unreadable("not an audio file that can be read (damaged header)")
        return stream

    def _open_mp3(self, file: BinaryIO, size: int, peek: Peek) -> None:
        """Reopen an MP3 file without its announced length if there is none or the file holds more sound than that."""
        index = find_index(peek)
        if index is None:
            self.stream = self._open(View(file, size, seeming_size=ENDLESS))
        elif is_exceeded(index, peek, size):
            self.stream = self._open(View(file, size, ((index.place, bytes(4)),), ENDLESS))

    def _blocks(self) -> Iterator[np.ndarray]:
        """Yield blocks of decoded samples [n, channels], n > 0, up to the announced length.

        Beyond it libFLAC would decode a tag.
        """
        size = _MP3_BLOCK if self.is_mp3 else max(1, _BLOCK // self.channels)
        left = math.inf if self.is_mp3 or not self.expected else self.expected
        while left and len(block := self.stream.read(int(min(size, left)), dtype="float32", always_2d=True)):
            left -= len(block)
            yield block

    def _check_bytes(self) -> None:
        """Refuse a file that is smaller than its header announces; libsndfile would read such a file without error."""
        if self.header is None or self.header.size is None:
            return
        lacking = self.header.begin + self.header.size - self.size
        if lacking <= MOST_LACKING:
            return
        there = self.header.size - lacking
        if there <= 0:
            raise self._unreadable(f"cut short: 0.0 s, {self.header.size} bytes of sound announced")
        seconds = (self.expected or 0) / self.rate
        raise self._unreadable(f"cut short: {_part(seconds, seconds * self.header.size / there)}")

    def _check_announced(self, limit: float) -> None:
        """Refuse a recording whose announced length exceeds the limit, as too long or, if its end is missing, as
        truncated."""
        if self.expected <= self._most(limit):
            return
        if not self.stream.end_is_there():
            raise self._unreadable(f"cut short or damaged: lacks the end of {self.expected / self.rate:.1f} s")
        self._check_length(self.expected, limit)

    def _check_length(self, frames: int, limit: float, about: str = "") -> None:
        if frames <= self._most(limit):
            return
        seconds = frames / self.rate
        if seconds > limit:
            message = f"{about}{_beyond(seconds, limit)} s long, the limit is {limit:g} s"
        else:
            message = f"{about}{frames} samples of {self.channels} channels, the limit is {MOST_VALUES} in all"
        raise Unusable("too long", f"{self.name}: {message}")

    def _most(self, limit: float) -> float:
        """Return the maximum number of samples per channel that are decoded for a limit in seconds."""
        return min(limit * self.rate, MOST_VALUES / self.channels)

    def _lacking(self, frames: int, failure: str | None) -> str:
        seconds = frames / self.rate
        there = _part(seconds, self.expected / self.rate) if self.expected else f"{seconds:.1f} s"
        return f"damaged or cut short: {there}{f' ({failure})' if failure else ''}"

    def _check_disk(self) -> None:
        if self.view.error is not None:
            raise self.view.error

    def _unreadable(self, why: str) -> Unusable:
        return Unusable("unreadable", f"{self.name}: {why}")


class _Tally:
    """Statistics of a recording's samples for its notes: peak, power and finiteness, collected block by block."""

    def __init__(self, channels: int):
        self.channels, self.frames, self.full, self.peak = channels, 0, 0, 0.0
        self.power = self.mixed_power = 0.0
        self.finite = True

    def add(self, block: np.ndarray) -> np.ndarray:
        """Add a block of samples [n, channels] to the statistics and return its mix-down to mono [n]."""
        self.frames += len(block)
        low, high = float(block.min()), float(block.max())
        if max(-low, high) >= _FULL_SCALE:
            self.full += int(np.count_nonzero(np.abs(block) >= _FULL_SCALE))
        self.peak = max(self.peak, -low, high)
        if self.channels == 1:
            self.finite &= math.isfinite(low) and math.isfinite(high)  # min and max of a block with a NaN are NaN
            return block[:, 0]
        with np.errstate(over="ignore", invalid="ignore"):
            mono = block.mean(axis=1)
            self.finite &= bool(np.isfinite(mono).all())
            self.power += float(np.square(block, dtype=np.float64).mean(axis=1).sum())
            self.mixed_power += float(np.square(mono, dtype=np.float64).sum())
        return mono

    @property
    def clipped(self) -> bool:
        return self.full >= CLIPPED_SHARE * self.frames * self.channels

    def notes(self) -> list[str]:
        cancelled = self.channels > 1 and self.power > 0 and self.mixed_power < _LEFT * self.power
        return ([_OVER] if self.peak > _FAR_OVER else []) + ([_CANCEL] if cancelled else [])


def _part(seconds: float, whole: float) -> str:
    """Describe how many of the announced seconds a recording has, with enough digits to show the difference."""
    if 0 <= whole - seconds < 0.1:
        return f"the last {1000 * (whole - seconds):.2g} ms of {whole:.1f} s announced are lacking"
    return f"{seconds:.1f} s of {whole:.1f} s announced"


def _beyond(seconds: float, limit: float) -> str:
    """Format a duration in seconds with enough decimals, at least one, to show that it exceeds a limit."""
    digits = next((n for n in range(1, 9) if float(f"{seconds:.{n}f}") > limit), 9)
    return f"{seconds:.{digits}f}"
