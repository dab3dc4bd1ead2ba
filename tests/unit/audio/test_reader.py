"""Test the reader of recordings: all commands read the same samples or report the same error, in bounded memory."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sounds import FORMATS, RATE, by_all_paths, encoded, mutated, noise

from omnikit.audio.containers import announced
from omnikit.audio.io import load_audio
from omnikit.audio.reader import LONGEST, MOST_LACKING, MOST_VALUES, Unusable, measure, read
from omnikit.data.recording_check import check_recording

SAMPLES = 8000
GIGABYTE = 2**20  # KiB


def wav(riff: int, data: int, samples: np.ndarray | None = None, rate: int = RATE, after: bytes = b"") -> bytes:
    """Return a mono 16-bit WAV file with the given values in the size fields of its RIFF and data chunks."""
    pcm = (noise(SAMPLES) * 32767).astype("<i2").tobytes() if samples is None else samples.astype("<i2").tobytes()
    head = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    return b"".join([b"RIFF", struct.pack("<I", riff), b"WAVEfmt ", head, b"data", struct.pack("<I", data), pcm, after])


def changed(data: bytes, mark: bytes, offset: int, code: str, value: int) -> bytes:
    """Return an audio file in which the number at an offset after the first occurrence of a byte sequence is replaced.
    """
    at = data.index(mark) + offset
    return data[:at] + struct.pack(code, value) + data[at + struct.calcsize(code) :]


def frames_of(data: bytes, max_seconds: float | None = None) -> int:
    """Return the length of a recording in samples, and check that the functions `read` and `measure` agree on it."""
    found = read(data, "x", max_seconds)
    quick = measure(data, "x", max_seconds)
    assert quick.frames == found.frames == len(found.mono) and quick.rate == found.rate
    return found.frames


def reason_of(data: bytes | Path, max_seconds: float | None = None) -> tuple[str, str]:
    """Return reason and message with which a recording is refused, and check that `read` and `measure` give the same.
    """
    reasons = []
    for look in (read, measure):
        with pytest.raises(Unusable) as error:
            look(data, "x.wav", max_seconds)
        reasons.append(error.value.reason)
    assert len(set(reasons)) == 1 and str(error.value).startswith("x.wav: ") and "\n" not in str(error.value)
    return reasons[0], str(error.value)


@pytest.mark.parametrize(("riff", "data"), [
    (0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000), (0x80000024, 0x80000000), (0x7FFFFFFF, 0x7FFFFFDB),
    (0, 0), (36, 0), (0xFFFFFFFF, 0xFFFFFFDB), (7, 2 * SAMPLES),
])  # fmt: skip
def test_wavs_of_programs_that_could_not_go_back_are_read_to_their_end(riff: int, data: int):
    assert frames_of(wav(riff, data)) == SAMPLES


@pytest.mark.parametrize(("name", "mark", "offset", "code", "value"), [
    ("rf64", b"ds64", 16, "<Q", 0), ("rf64", b"ds64", 16, "<Q", 2**64 - 1), ("w64", b"data", 16, "<Q", 0),
    ("w64", b"data", 16, "<Q", 2**63 - 1), ("aiff", b"SSND", 4, ">I", 0), ("aiff", b"SSND", 4, ">I", 2**32 - 1),
    ("au", b".snd", 8, ">I", 2**32 - 1), ("au", b".snd", 8, ">I", 0), ("caf", b"data", 4, ">Q", 2**64 - 1),
])  # fmt: skip
def test_other_containers_of_unknown_length_are_read_to_their_end(name, mark, offset, code, value):
    assert frames_of(changed(encoded(name), mark, offset, code, value)) == SAMPLES


def test_silence_of_unknown_length_is_no_empty_file():
    assert frames_of(wav(0, 0, np.zeros(SAMPLES))) == SAMPLES
    assert reason_of(wav(44, 0, np.zeros(0), after=b"LIST\4\0\0\0INFO"))[0] == "empty"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_file_cut_short_is_never_taken_for_whole(name: str, share: float):
    data = encoded(name)
    cut = data[: int(len(data) * share)]
    if name == "mp3":  # its frames are decoded independently, so the complete ones are used
        found = read(cut, "x")
        assert "less than announced" in found.notes and 0 < found.frames < SAMPLES
    else:
        assert reason_of(cut)[0] == "unreadable"


def test_a_wav_says_how_much_is_lacking():
    reason, message = reason_of(wav(36 + 1152000000, 1152000000, noise(1600)))
    assert (reason, message) == ("unreadable", "x.wav: cut short: 0.1 s of 36000.0 s announced")


@pytest.mark.parametrize("name", ["wav", "float", "w64", "rf64", "aiff", "caf", "au"])
def test_a_header_counted_in_or_lacking_padding_is_no_loss(name: str):
    data = encoded(name)
    width = 4 if name == "float" else 2
    for lack in (1, width, 44, MOST_LACKING):
        assert SAMPLES - MOST_LACKING / width - 5 < frames_of(data[: sound_end(data, name) - lack]) <= SAMPLES, lack
    assert reason_of(data[: sound_end(data, name) - MOST_LACKING - 1])[0] == "unreadable"


def sound_end(data: bytes, name: str) -> int:
    told = announced(lambda at, count: data[at : at + count], len(data))
    return told.begin + told.size


def test_a_wav_whose_sound_is_said_to_be_as_long_as_the_file_is_whole():
    assert frames_of(wav(36 + 2 * SAMPLES, 44 + 2 * SAMPLES)) == SAMPLES


def test_a_small_lack_is_told_in_milliseconds():
    message = reason_of(wav(36 + 2 * SAMPLES, 2 * SAMPLES + 320))[1]
    assert message == "x.wav: cut short: the last 10 ms of 0.5 s announced are lacking"


def xing(data: bytes) -> int:
    return max(data.find(b"Xing"), data.find(b"Info"))


def without_index(data: bytes) -> bytes:
    return data[: xing(data)] + bytes(4) + data[xing(data) + 4 :]


def test_the_length_of_an_mp3_is_what_decoding_gives():
    data = encoded("mp3")
    assert frames_of(data) == SAMPLES
    bare = without_index(data)
    whole = frames_of(bare)  # the index is decoded as a frame, and the encoder's padding at both ends is not removed
    assert SAMPLES < whole <= SAMPLES + 4 * 1152 and whole % 576 == 0
    assert frames_of(bare + b"TAG" + b"x" * 125) == whole
    picture = b"APIC" + struct.pack(">I", 200_000) + b"\0\0" + b"\x89PNG" + bytes(range(1, 251)) * 800
    size = bytes((len(picture) >> shift) & 127 for shift in (21, 14, 7, 0))
    assert frames_of(b"ID3\3\0\0" + size + picture + bare) == whole
    assert frames_of(changed(data, data[xing(data) : xing(data) + 4], 8, ">I", 5000)) <= whole  # a wrong index
    assert frames_of(data + data) == 2 * whole  # joined by `cat`; the index counts the frames of the first file only


def test_an_mp3_whose_frames_get_shorter_is_not_ended_early():
    loud, quiet = encoded("mp3", noise(RATE)), encoded("mp3", np.zeros(20 * RATE))
    assert frames_of(without_index(loud) + without_index(quiet)) > 21 * RATE


def test_flac_of_unknown_length_is_read_to_its_end():
    data = bytearray(encoded("flac"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    assert frames_of(bytes(data)) == SAMPLES


@pytest.mark.parametrize("fields", [(3, 10), (3, 10, 2000), (1, 10), (3, 70), (0,)])
def test_an_mp3_is_read_beyond_an_index_that_tells_too_little(fields: tuple[int, ...]):
    data = encoded("mp3", noise(5 * RATE))
    at = xing(data) + 4
    wrong = data[:at] + struct.pack(f">{len(fields)}I", *fields) + data[at + 4 * len(fields) :]
    assert frames_of(data) == 5 * RATE
    assert frames_of(wrong) == frames_of(without_index(data)) > 5 * RATE


@pytest.mark.parametrize("frames", [10, 140, 5000])
@pytest.mark.parametrize(("name", "place"), [(b"VBRI", 36), (b"VBRI", 13), (b"Xing", 21)])
def test_other_indexes_of_an_mp3_are_left_to_decoding(name: bytes, place: int, frames: int):
    data = encoded("mp3", noise(5 * RATE))
    fields = struct.pack(">HHHII", 1, 0, 0, len(data), frames) if name == b"VBRI" else struct.pack(">II", 1, frames)
    head = data[:4].ljust(place, b"\0") + name + fields
    assert frames_of(head + bytes(144 - len(head)) + data[144:]) > 5 * RATE


@pytest.mark.parametrize(
    "between", [b"", b"TAG" + bytes(125), b"\0", b"APETAGEX" + bytes(60), b"ID3\4\0\0\0\0\0\x0a" + bytes(10)]
)
def test_joined_mp3s_are_read_to_the_end_whatever_is_between(between: bytes):
    data = encoded("mp3", noise(5 * RATE))
    assert frames_of(data + between + data) > 10 * RATE


def test_junk_behind_an_mp3_is_no_sound():
    data, junk = encoded("mp3", noise(5 * RATE)), np.random.default_rng(0).bytes(2**20)
    for tail in (b"TAG" + bytes(125), b"APETAGEX" + bytes(100), junk):
        assert frames_of(data + tail) == 5 * RATE


@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), b"APETAGEX" + b"\1" * 60, bytes(4096)])
def test_what_follows_a_flac_is_no_damage(tail: bytes):
    data = encoded("flac", noise(20 * RATE))
    assert frames_of(data + tail) == 20 * RATE
    assert reason_of(data[:-3000] + tail)[0] == "unreadable"
    middle = len(data) // 2
    with pytest.raises(Unusable, match="damaged or cut short"):
        read(data[:middle] + b"\x55" * 200 + data[middle + 200 :] + tail, "x")


def peak_memory() -> int:
    """Return the peak memory of this process in KiB since the last call of `reset_peak_memory`."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def reset_peak_memory() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


@pytest.fixture(scope="module")
def silence() -> bytes:
    """Return two hours of silence as a small FLAC file."""
    return encoded("flac", np.zeros(2 * 3600 * 4000, np.int16), 4000)


@pytest.mark.parametrize("seconds", [30.0, None])
def test_small_files_do_not_fill_the_memory(silence: bytes, seconds: float | None):
    """Small files of long recordings (a WAV at 1 Hz, hours of silence as FLAC) are refused in bounded memory."""
    unknown = bytearray(silence)
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    start = reset_peak_memory()
    for data in (wav(36 + 10**6, 10**6, np.zeros(5 * 10**5), rate=1), silence, bytes(unknown)):
        assert len(data) < 2**20 and reason_of(data, seconds)[0] == "too long"
    assert peak_memory() - start < 40 * 2**10


def test_the_number_of_decoded_values_is_limited(monkeypatch: pytest.MonkeyPatch):
    assert MOST_VALUES > LONGEST * 48000 * 2
    monkeypatch.setattr("omnikit.audio.reader.MOST_VALUES", SAMPLES - 1)
    for name in ("wav", "flac", "mp3", "ogg"):
        reason, message = reason_of(encoded(name))
        assert reason == "too long" and "samples of 1 channels, the limit is 7999" in message


def test_a_length_just_beyond_the_limit_is_told_from_it():
    message = reason_of(encoded("wav", noise(480064)), 30.0)[1]
    assert message == "x.wav: 30.004 s long, the limit is 30 s"
    assert "36.5 s long" in reason_of(encoded("wav", noise(int(36.5 * RATE))), 30.0)[1]
    assert frames_of(encoded("wav", noise(480000)), 30.0) == 480000


def test_odd_samples_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    integers = np.round(noise(SAMPLES) * 32767)
    soundfile.write(tmp_path / "unscaled.wav", integers, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "opposite.wav", np.stack([noise(), -noise()], 1), RATE)
    soundfile.write(tmp_path / "opposite.flac", np.stack([noise(), -noise()], 1), RATE)
    soundfile.write(tmp_path / "loud.wav", 3 * noise() / 0.3, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "left.wav", np.stack([noise(), 0 * noise()], 1), RATE)
    notes = {name: read(tmp_path / name, name).notes for name in sorted(path.name for path in tmp_path.iterdir())}
    cancel, over = ("channels cancel",), ("over full scale",)
    assert notes == {
        "left.wav": (),
        "loud.wav": (),
        "opposite.flac": cancel,
        "opposite.wav": cancel,
        "unscaled.wav": over,
    }
    assert check_recording(tmp_path / "unscaled.wav").notes == over
    load_audio(tmp_path / "unscaled.wav", RATE)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path / 'unscaled.wav'}: over full scale (samples are far beyond 1")


def test_a_sample_or_two_are_never_resampled_to_none(tmp_path: Path):
    soundfile.write(tmp_path / "short.wav", noise(1), 48000)
    assert len(load_audio(tmp_path / "short.wav", RATE)) == 1


def test_a_disk_that_fails_while_reading_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "a.wav").write_bytes(encoded("wav"))

    class Failing:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def seek(self, at: int) -> int:
            return self.file.seek(at)

        def read(self, count: int) -> bytes:
            if self.file.tell() > 4000:
                raise OSError(5, "Input/output error")
            return self.file.read(count)

    monkeypatch.setattr(Path, "open", lambda path, mode: Failing(open(path, mode)))  # noqa: SIM115
    reason, message = reason_of(tmp_path / "a.wav")
    assert reason == "unreadable" and message.endswith("cannot be read (Input/output error)")
    assert "Traceback" not in capsys.readouterr().err


def failing(error: OSError):
    def fail(*_: object, **__: object):
        raise error

    return fail


@pytest.mark.parametrize("method", ["stat", "open"])
def test_what_the_disk_says_is_transient_and_ends_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded("wav"))
    for code, reason in ((errno.EACCES, "unreadable"), (errno.EMFILE, "unreadable"), (errno.ENOENT, "missing")):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, failing(OSError(code, "as the system says")))
            assert verdict(path) == (reason, True)
    assert read(path, "a").frames == SAMPLES


def verdict(source: bytes | Path) -> tuple[str, bool]:
    with pytest.raises(Unusable) as error:
        read(source, "x")
    return error.value.reason, error.value.transient


def test_only_verdicts_about_content_are_lasting(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    assert verdict(tmp_path / ("a/" * 2100 + "x.wav")) == ("unreadable", True)  # longer than a path can be
    for name in ("b.wav", "a.wav/b.wav", "", "fifo"):
        assert verdict(tmp_path / name) == ("missing", True)
    assert verdict(tmp_path / "a\0b") == ("missing", False)
    assert verdict(tmp_path / "a.wav") == ("empty", False)
    assert verdict(b"words and words") == ("unreadable", False)
    assert verdict(encoded("flac")[:-1000]) == ("unreadable", False)


def agree(files: list[Path], folder: Path) -> dict[str, list]:
    """Read sound files with each reading function, check that all give the same results, and return the results."""
    found = by_all_paths(files, folder)
    for name, outcomes in found.items():
        pairs = zip(files, found["singly"], outcomes, strict=True)
        assert not [(file.name, a, b) for file, a, b in pairs if a != b], name
    return found


def put(folder: Path, files: dict[str, bytes]) -> list[Path]:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def test_all_paths_agree_on_odd_files(tmp_path: Path):
    """All reading functions give the same result for unusual sound files, such as piped, truncated and joined ones."""
    mp3, ogg = encoded("mp3"), encoded("ogg")
    files = {f"whole.{name}": encoded(name) for name in FORMATS}
    files |= {f"cut.{name}": data[: len(data) // 2] for name, data in ((n, encoded(n)) for n in FORMATS)}
    files |= {
        "sox.wav": wav(0x7FFFF024, 0x7FFFF000), "killed.wav": wav(36, 0), "pipe.wav": wav(0xFFFFFFFF, 0xFFFFFFFF),
        "bare.mp3": without_index(mp3), "joined.mp3": mp3 + mp3, "junk.mp3": mp3 + bytes(range(256)) * 200,
        "late.ogg": ogg + b"\0" * 500, "no_ending": wav(36 + 2 * SAMPLES, 2 * SAMPLES), "wrong.flac": ogg,
        "words.wav": b"these are words", "nothing.wav": b"", "empty.wav": wav(36, 0, np.zeros(0)),
        "1_hz.wav": wav(36 + 10**5, 10**5, np.zeros(5 * 10**4), rate=1), "film.m4a": b"\0\0\0\x20ftypM4A ",
    }  # fmt: skip
    found = agree(put(tmp_path / "in", files), tmp_path / "work")
    outcomes = dict(zip(files, found["singly"], strict=True))
    assert {name for name, outcome in outcomes.items() if not isinstance(outcome, int)} == {
        *(f"cut.{name}" for name in FORMATS if name != "mp3"),
        "words.wav", "nothing.wav", "empty.wav", "1_hz.wav", "film.m4a",
    }  # fmt: skip
    for name in ("whole.wav", "whole.flac", "whole.opus", "sox.wav", "killed.wav", "pipe.wav", "no_ending", "late.ogg"):
        assert outcomes[name] == SAMPLES, name


def check_mutations(count: int, seed: int, folder: Path, capfd) -> None:
    print(f"seed {seed}")
    names = {f"{i}": data for i, data in enumerate(mutated(count, seed))}
    start = reset_peak_memory()
    found = agree(put(folder / "in", names), folder / "work")
    assert peak_memory() - start < GIGABYTE
    usable = sum(isinstance(outcome, int) for outcome in found["singly"])
    assert count / 5 < usable < 4 * count / 5
    assert "Traceback" not in capfd.readouterr().err


def test_all_paths_agree_on_damaged_files(tmp_path: Path, capfd):
    check_mutations(60, 14, tmp_path, capfd)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_all_paths_agree_on_many_damaged_files(seed: int, tmp_path: Path, capfd):
    check_mutations(300, seed, tmp_path, capfd)


def test_a_trusted_header_gives_what_decoding_gives():
    """The length that an audio header declares, where it is trusted, is the decoded length, in damaged files too.

    FLAC is the exception: its header is trusted if the end of the file can be decoded.
    """
    for i, data in enumerate(mutated(200, 3, tuple(name for name in FORMATS if name != "flac"))):
        looks = [check_recording(data, decode_all=decode_all) for decode_all in (False, True)]
        quick, full = ((found.problem, found.seconds) for found in looks)
        assert quick == full or full[0] == "clipped", i


@pytest.mark.parametrize("name", ["ogg", "opus"])
def test_only_an_intact_ogg_is_measured_without_decoding(name: str, monkeypatch: pytest.MonkeyPatch):
    data = encoded(name, noise(5 * RATE))
    pages = [at.start() for at in re.finditer(b"OggS", data)]
    middle = pages[len(pages) // 2]
    damaged = changed(data, data[middle : middle + 8], 60, "B", data[middle + 60] ^ 1)
    without_page = data[: pages[-2]] + data[pages[-1] :]
    assert frames_of(data) == frames_of(data + bytes(500)) == 5 * RATE
    assert reason_of(without_page)[0] == "unreadable"
    decoded = []
    monkeypatch.setattr("omnikit.audio.reader._Recording.decode", lambda *_, **__: decoded.append(1))
    for source, count in ((data, 0), (damaged, 1), (without_page, 2), (data + bytes(500), 3), (data + data, 4)):
        measure(source, "x")
        assert len(decoded) == count


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_trusted_oggs_give_what_decoding_gives(seed: int):
    for i, data in enumerate(mutated(600, seed, ("ogg", "opus"))):
        quick, full = (check_recording(data, decode_all=decode_all) for decode_all in (False, True))
        assert (quick.problem, quick.seconds) == (full.problem, full.seconds) or full.problem == "clipped", i
