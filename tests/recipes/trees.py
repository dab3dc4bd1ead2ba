"""Functions that write small copies of the supported corpora in their published layouts, intact or damaged."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from omnikit.prepare.corpus import Corpus

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def load_script(path: Path) -> ModuleType:
    """Import a script of a recipe as a module with a unique name, since several scripts have the same file name."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def load_corpus(name: str) -> Corpus:
    """Return the corpus description `CORPUS` that a recipe's prepare.py defines."""
    return load_script(RECIPES / name / "prepare.py").CORPUS


def sound(seconds: float = 0.2, rate: int = 16000, channels: int = 1, gain: float = 0.1) -> np.ndarray:
    """Return uniform noise [N, channels] of a given duration in seconds and sample rate in Hz."""
    return np.random.default_rng(0).uniform(-gain, gain, (int(seconds * rate), channels))


def write_sound(path: Path, seconds: float = 0.2, rate: int = 16000, **options) -> Path:
    """Write noise to a sound file, whose format follows from its file name extension, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, sound(seconds, rate, **options), rate, **kind)
    return path


def sound_bytes(seconds: float = 0.2, rate: int = 22050) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, sound(seconds, rate), rate, format="WAV")
    return buffer.getvalue()


def write_text(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def cut(path: Path) -> None:
    """Truncate a file to half of its size in bytes."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def librispeech(root: Path, damaged: bool = False) -> None:
    chapter = root / "LibriSpeech" / "dev-clean" / "19" / "198"
    texts = "19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n"
    for number in (0, 1):
        write_sound(chapter / f"19-198-{number:04d}.flac", 1.0 + number)
    other = root / "LibriSpeech" / "dev-other" / "26" / "495"
    write_sound(other / "26-495-0000.flac")
    write_text(other / "26-495.trans.txt", "26-495-0000 IT WAS SO\n")
    if damaged:
        texts += "".join(f"19-198-{i:04d} A TEXT\n" for i in (10, 11, 12, 13, 1)) + "19-198-0014\n"
        cut(write_sound(chapter / "19-198-0010.flac"))
        write_text(chapter / "19-198-0011.flac", b"not audio at all")
        write_sound(chapter / "19-198-0012.flac", 0.0)  # 0013 is missing
        write_sound(chapter / "19-198-0014.flac")
        write_sound(chapter / "19-198-0015.flac")
    write_text(chapter / "19-198.trans.txt", texts.encode() + (b"19-198-0016 CAF\xc9\n" if damaged else b""))


def libritts(root: Path, damaged: bool = False, split: str = "dev-clean") -> None:
    chapter = root / "LibriTTS" / split / "84" / "121123"
    for i, text in enumerate(("Mr. Smith has $2.", "It is so.")):
        name = f"84_121123_000007_{i:06d}"
        write_sound(chapter / f"{name}.wav", rate=24000)
        write_text(chapter / f"{name}.original.txt", text)
        write_text(chapter / f"{name}.normalized.txt", text.replace("Mr.", "Mister").replace("$2", "two dollars"))
    write_text(chapter / "84_121123.trans.tsv", "84_121123_000007_000000\tMr. Smith\n")
    if damaged:
        cut(write_sound(chapter / "84_121123_000008_000000.wav", rate=24000))  # WAV has no end mark
        write_text(chapter / "84_121123_000008_000000.normalized.txt", "Cut.")
        write_text(chapter / "84_121123_000008_000001.normalized.txt", "Missing.")
        write_sound(chapter / "84_121123_000008_000002.wav", rate=24000)
        write_sound(chapter / "84_121123_000008_000003.wav", rate=24000)
        write_text(chapter / "84_121123_000008_000003.normalized.txt", " \n")


def vctk(root: Path, damaged: bool = False) -> None:
    root = root / "VCTK-Corpus-0.92"
    write_text(root / "speaker-info.txt", "ID  AGE  GENDER  ACCENTS  REGION COMMENTS\np225  23  F    English\n")
    for speaker, microphones in (("p225", ("mic1", "mic2")), ("p280", ("mic1",)), ("p315", ("mic1", "mic2"))):
        for microphone in microphones:
            name = f"{speaker}_001_{microphone}"
            write_sound(root / "wav48_silence_trimmed" / speaker / f"{name}.flac", rate=48000)
        if speaker != "p315":
            write_text(root / "txt" / speaker / f"{speaker}_001.txt", "Please call Stella.\n")
    if damaged:
        write_text(root / "txt" / "p225" / "p225_002.txt", b"caf\xe9\n")
        write_sound(root / "wav48_silence_trimmed" / "p225" / "p225_002_mic1.flac", rate=48000)
        write_sound(root / "wav48_silence_trimmed" / "p225" / "p225_003_mic1.flac", rate=16000, channels=2)
        write_text(root / "txt" / "p225" / "p225_003.txt", "Stereo.")


def mls(
    root: Path, damaged: bool = False, name: str = "dev", languages: Sequence[str] = ("german", "polish_opus")
) -> None:
    for language in languages:
        ending = ".opus" if language.endswith("_opus") else ".flac"
        split = root / f"mls_{language}" / name
        lines = "4800_10003_000000\tein test für alle\n4800_10003_000001\tnoch einer\n"
        for i in range(2):
            write_sound(split / "audio" / "4800" / "10003" / f"4800_10003_{i:06d}{ending}", 0.5)
        write_text(split / "segments.txt", "4800_10003_000000\thttp://..\t1.0\t2.0\n")
        if damaged:
            lines += "a line without a tab\n4800_10003_000009\tfehlt\n4800_10003_000000\tdoppelt\n"
            write_sound(split / "audio" / "4800" / "10003" / f"4800_10003_000010{ending}")
        write_text(split / "transcripts.txt", lines)


def ljspeech(root: Path, damaged: bool = False) -> None:
    root = root / "LJSpeech-1.1"
    lines = 'LJ001-0001|He said "1455|He said "fourteen fifty-five\nLJ001-0002|in being|in being\n'
    for i in (1, 2):
        write_sound(root / "wavs" / f"LJ001-{i:04d}.wav", rate=22050)
    if damaged:
        lines += "LJ001-0003|two columns\nLJ001-0004|none|\n"
        for i in (3, 4, 5):
            write_sound(root / "wavs" / f"LJ001-{i:04d}.wav", rate=22050)
    write_text(root / "metadata.csv", lines)


def openorca(root: Path, damaged: bool = False) -> None:
    rows = [
        {"id": f"flan.{i}", "system_prompt": "You are ..", "question": f" Question {i}? ", "response": f"Answer {i}."}
        for i in range(5)
    ]
    if damaged:
        rows += [rows[0], {**rows[1], "id": "flan.9", "response": ""}, {**rows[1], "id": "flan.10", "question": None}]
        cut(pq_file(root / "3_5M-GPT3_5-Augmented.parquet", rows))
    pq_file(root / "1M-GPT4-Augmented.parquet", rows, row_group_size=2)


def moss(root: Path, damaged: bool = False) -> None:
    def talk(*turns: tuple[str, str]) -> dict:
        said = "".join(f"[Human]: {human}<eoh> [MOSS]: {answer}<eoa> " for human, answer in turns)
        return {"id": 0, "prefix": "MOSS is ..", "num_turns": len(turns), "plain_text": said}

    talks = [talk(("How\nmany?", "Four."), ("And now?", "Five.")), talk(("Why [so]?", "Because."))]
    later = {
        "conversation_id": 1,
        "chat": {"turn_1": {"Human": "<|Human|>: 你好<eoh>\n", "MOSS": "<|MOSS|>: 好<eom>\n"}},
    }
    if damaged:
        talks += [{"plain_text": "[Human]: no answer<eoh>"}, talk(("Blank?", " "))]
    lines = json.dumps(later, ensure_ascii=False).encode() + b"\n" + (b"{no json\n\xff\xfe\n" if damaged else b"")
    write_text(root / "en_helpfulness.json", json.dumps(talks))
    write_text(root / "zh_honesty.jsonl", lines)


def snac_text(frames: int, seed: int = 0) -> str:
    """Return random codes of a number of frames, as text in the format of the corpus VoiceAssistant-400K."""
    codes = np.random.default_rng(seed).integers(0, 4096, (frames, 7))
    return "".join("# " + " ".join(map(str, frame)) + " " for frame in codes)


def voiceassistant(root: Path, damaged: bool = False, files: int = 2, rows: int = 3) -> None:
    for number in range(files):
        table = [
            {
                "split_name": "identity",
                "index": f"{number}{i}",
                "round": "1",
                "question": f"who are you {i}",
                "question_audio": {"bytes": sound_bytes(0.2 + 0.05 * i), "path": f"{i}.wav"},
                "answer": f"i am number {i}",
                "answer_snac": snac_text(2 + i, seed=i),
            }
            for i in range(rows)
        ]
        if damaged and number == 0:
            codes = ("", "# 1 2 3 ", snac_text(1) + "# 1 2 3 4 5 6 4096", snac_text(1).replace("# ", "# -", 1), "# a b")
            table += [{**table[0], "index": f"bad{i}", "answer_snac": text} for i, text in enumerate(codes)]
            table += [{**table[0], "index": "no audio", "question_audio": {"bytes": None, "path": None}}]
            table += [{**table[0], "index": "cut", "question_audio": {"bytes": sound_bytes()[:500], "path": None}}]
        path = pq_file(root / "data" / f"train-{number:05d}-of-{files:05d}.parquet", table)
        if damaged and number == 1:
            cut(path)


def pq_file(path: Path, rows: list[dict], row_group_size: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


TREES = {
    "LibriSpeech": librispeech,
    "LibriTTS": libritts,
    "VCTK": vctk,
    "MLS": mls,
    "LJSpeech": ljspeech,
    "OpenOrca": openorca,
    "MOSS": moss,
    "VoiceAssistant": voiceassistant,
}
