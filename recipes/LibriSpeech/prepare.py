"""CSV manifests of LibriSpeech, or of anything laid out like it.

    python prepare.py --data_folder /data/LibriSpeech --save_folder manifests --splits train-clean-100 dev-clean

Layout read: `<split>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac`, with the texts of a chapter in
`<speaker>-<chapter>.trans.txt`. One `<split>.csv` each is written, with the columns ID, duration (seconds), wav, spk_id
and wrd. A recording that cannot be read (an empty one is such) or has no text is left out and counted.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import soundfile
from tqdm import tqdm

COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")
THREADS = 4  # opening files waits on the disk more than on the processor


@dataclass
class Summary:
    """What one split's manifest holds."""

    split: str
    rows: int = 0
    hours: float = 0.0
    speakers: int = 0
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> recordings left out
    examples: dict[str, str] = field(default_factory=dict)  # reason -> one such file

    def __str__(self) -> str:
        skipped = ", ".join(f"{n} {why} (such as {self.examples[why]})" for why, n in self.skipped.items())
        size = f"{self.rows} rows, {self.hours:.2f} h, {self.speakers} speakers"
        return f"{self.split}: {size}; skipped: {skipped or 'none'}"


def prepare_librispeech(
    data_folder: str | Path, save_folder: str | Path, splits: list[str], decode_all: bool = False
) -> dict[str, Summary]:
    """Write `<save_folder>/<split>.csv` for each split, unless it is there and its recordings have not changed.

    Args:
        data_folder: the folder that holds the splits, or the one above it (`.../LibriSpeech`).
        save_folder: where manifests go; made if missing.
        splits: names of folders, such as `train-clean-100`.
        decode_all: read every recording to its end instead of its header and last samples.

    Raises:
        ValueError: a split that does not exist, or one without a single usable recording.
    """
    root = _find_root(Path(data_folder), splits)
    Path(save_folder).mkdir(parents=True, exist_ok=True)
    return {split: _prepare_split(root / split, Path(save_folder), decode_all) for split in splits}


def _find_root(data_folder: Path, splits: list[str]) -> Path:
    if not data_folder.is_dir():
        raise ValueError(f"--data_folder {data_folder}: no such folder")
    roots = [root for root in (data_folder, data_folder / "LibriSpeech") if all((root / s).is_dir() for s in splits)]
    if roots:
        return roots[0]
    choices = sorted(p.name for p in data_folder.iterdir() if p.is_dir())
    missing = [split for split in splits if split not in choices]
    raise ValueError(f"--splits {' '.join(missing)}: not in {data_folder}; choices: {', '.join(choices) or 'none'}")


def _prepare_split(folder: Path, save_folder: Path, decode_all: bool) -> Summary:
    manifest, note = save_folder / f"{folder.name}.csv", save_folder / f"{folder.name}.json"
    transcripts = sorted(folder.glob("*/*/*.trans.txt"))
    fingerprint = _fingerprint(folder, transcripts, decode_all)
    if manifest.exists() and note.exists():
        kept = json.loads(note.read_text())
        if kept["fingerprint"] == fingerprint:
            return Summary(**kept["summary"])
    summary, rows = _scan(folder.name, transcripts, decode_all)
    if not rows:
        raise ValueError(f"{folder}: no usable recording; {summary}")
    note.unlink(missing_ok=True)  # until the new one is whole the old manifest must not pass for up to date
    _write_csv(rows, manifest)
    _replace(note, json.dumps({"fingerprint": fingerprint, "summary": asdict(summary)}, indent=1))
    return summary


def _fingerprint(folder: Path, transcripts: list[Path], decode_all: bool) -> str:
    """Changes when a transcript changes, or a file of a chapter is added, removed or replaced."""
    stamps = [(str(t), t.stat().st_size, t.stat().st_mtime_ns, t.parent.stat().st_mtime_ns) for t in transcripts]
    return hashlib.sha256(repr((str(folder.resolve()), decode_all, stamps)).encode()).hexdigest()


def _scan(split: str, transcripts: list[Path], decode_all: bool) -> tuple[Summary, list[dict]]:
    reasons: Counter[str] = Counter()
    summary, rows = Summary(split), []
    texts = [(t.parent / f"{name}.flac", text) for t in transcripts for name, text in _read_transcript(t)]
    with ThreadPoolExecutor(THREADS) as pool:
        checked = pool.map(lambda item: _duration(item[0], decode_all), texts)
        bar = tqdm(checked, total=len(texts), desc=split, leave=False)
        for (path, text), (seconds, problem) in zip(texts, bar, strict=True):
            problem = problem or ("without a text" if not text else None)
            if problem:
                reasons[problem] += 1
                summary.examples.setdefault(problem, path.name)
            else:
                rows.append(_row(path, seconds, text))
    untold = {p for t in transcripts for p in t.parent.glob("*.flac")} - {path for path, _ in texts}
    if untold:
        reasons["without a text"] += len(untold)
        summary.examples.setdefault("without a text", min(p.name for p in untold))
    summary.rows, summary.skipped = len(rows), dict(reasons)
    summary.hours = sum(row["duration"] for row in rows) / 3600
    summary.speakers = len({row["spk_id"] for row in rows})
    return summary, rows


def _read_transcript(path: Path) -> list[tuple[str, str]]:
    """(utterance id, text) of each line that is not blank."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(name, text.strip()) for name, _, text in (line.strip().partition(" ") for line in lines) if name]


def _duration(path: Path, decode_all: bool) -> tuple[float, str | None]:
    """Seconds, and what is wrong with the recording if anything is."""
    if not path.exists():
        return 0.0, "missing"
    try:
        with soundfile.SoundFile(path) as file:
            # a file cut short has its header but not its end; where there is no sample at all, this fails as well
            file.seek(0 if decode_all else file.frames - 1)
            expected = file.frames - file.tell()
            if len(file.read(dtype="int16")) != expected:
                return 0.0, "unreadable"
            return file.frames / file.samplerate, None
    except (soundfile.SoundFileError, OSError):
        return 0.0, "unreadable"


def _row(path: Path, seconds: float, text: str) -> dict:
    return {
        "ID": path.stem,
        "duration": round(seconds, 4),
        "wav": str(path.resolve()),
        "spk_id": path.stem.split("-")[0],
        "wrd": text,
    }


def _write_csv(rows: list[dict], path: Path) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


def _replace(path: Path, content: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_folder", required=True)
    parser.add_argument("--save_folder", required=True)
    parser.add_argument("--splits", nargs="+", required=True)
    parser.add_argument("--decode_all", action="store_true", help="read every recording to its end")
    options = parser.parse_args()
    try:
        summaries = prepare_librispeech(options.data_folder, options.save_folder, options.splits, options.decode_all)
    except ValueError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        sys.exit(2)
    for summary in summaries.values():
        print(summary)


if __name__ == "__main__":
    main()
