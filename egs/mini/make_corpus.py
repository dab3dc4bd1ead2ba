"""Synthesizes the mini corpus with espeak-ng: sentences in LibriSpeech's layout, questions and dialogs as Parquet.

    python make_corpus.py --data_folder data [--seed 1] [--scale 1.0]

This writes `<data_folder>/corpus` (`train-clean` .. `test-voice`, `SPEAKERS.TXT`, `RECORDINGS.CSV`, `READY`) and
`<data_folder>/qa` (`train`, `dev`, `test_seen`, `test_unseen`, `test_heldout`, `dialogs_train`, `dialogs_more`,
`dialogs_written`, `dialogs_dev`, `dialogs_test_seen`, `dialogs_test_unseen`, `dialogs_test_crop` and `answers`, all
`.parquet`). The recording of an answer is found in `answers.parquet` by its text `t2`, those of `dialogs_test_crop`
excepted. The questions of `dialogs_written` are not recorded. Both are written to other folders first, which are
renamed when they are complete; `READY` is written last.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import multiprocessing
import shutil
from collections import defaultdict
from pathlib import Path

import dialog_plan
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import voices
from corpus_plan import (
    RANDOM_CHAPTER,
    WRITTEN_SPLIT,
    PlannedReading,
    PlannedTurn,
    draw_written_dialogs,
    plan_corpus,
    plan_crop_dialogs,
    plan_dialogs,
    plan_more_dialogs,
    plan_questions,
)
from dialog_plan import DialogTurn
from tqdm import tqdm

from omnikit.data.recording_check import encode_flac
from omnikit.errors import ArgumentParser, bad_input_exits, full_disk_names
from omnikit.files import whole_file, whole_folder, write_text
from omnikit.option_ranges import SEED, THREADS
from omnikit.prepare.espeak import MARGIN_SECONDS, synthesize

SAMPLE_RATE = 16000
CHUNK = 300  # recordings per worker process


def render(recording: PlannedReading) -> bytes:
    """Synthesize a planned recording with its noise and return it as the bytes of a FLAC file (16 kHz, 16 bit)."""
    wav = spoken(recording)
    if recording.noise_seed is not None:
        from omnikit.data.augment.noise import add_noise  # takes seconds to import, in each of many processes

        wav = add_noise(wav, recording.snr_db, np.random.default_rng(recording.noise_seed))
    return encode_flac(wav, SAMPLE_RATE)


def spoken(recording: PlannedReading) -> np.ndarray:
    """Synthesize a planned recording without noise: its text, or each of its parts with silence between them."""
    parts = recording.parts or ((recording.text, 0.0),)
    said = [
        synthesize(text, recording.voice, speed=recording.speed, pitch=recording.pitch, sample_rate=SAMPLE_RATE)[0]
        for text, _ in parts
    ]
    return join(said, [seconds for _, seconds in parts[:-1]])


def join(waveforms: list[np.ndarray], pauses: list[float]) -> np.ndarray:
    """Return waveforms [N] one after another with pauses between them in seconds, from speech to speech.

    Each waveform has a margin of `MARGIN_SECONDS` at both ends, as `synthesize` returns it. Margins may overlap.
    """
    starts = [0]
    for wav, seconds in zip(waveforms[:-1], pauses, strict=True):
        starts.append(starts[-1] + len(wav) + round((seconds - 2 * MARGIN_SECONDS) * SAMPLE_RATE))
    joined = np.zeros(max(start + len(wav) for start, wav in zip(starts, waveforms, strict=True)), np.float32)
    for start, wav in zip(starts, waveforms, strict=True):
        joined[start : start + len(wav)] += wav
    return joined


def _render_chunk(chunk: list[PlannedReading]) -> list[tuple[str, str, bytes]]:
    return [(r.split, r.id, render(r)) for r in chunk]


def render_all(recordings: list[PlannedReading], workers: int, title: str):
    """Synthesize planned recordings in worker processes; yield split, id and FLAC bytes of each, in arbitrary order.

    The output of espeak-ng depends slightly on the texts before. Chunks of fixed content, each in a new process, make
    the result independent of the distribution of the work. Recordings as people speak and of dialogs have chunks of
    their own, so that the others do not depend on them.
    """
    ordered = sorted(recordings, key=lambda r: (r.voice, r.split, r.id))
    read = [r for r in ordered if not r.parts and r.chapter <= RANDOM_CHAPTER]
    rest = [r for r in ordered if r.parts or r.chapter > RANDOM_CHAPTER]
    chunks = [part[i : i + CHUNK] for part in (read, rest) for i in range(0, len(part), CHUNK)]
    # not "fork": a thread of the pool may hold a lock at that moment, on which the child would wait forever
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with context.Pool(workers, maxtasksperchild=1) as pool, tqdm(total=len(ordered), desc=title) as bar:
        for done in pool.imap_unordered(_render_chunk, chunks, chunksize=1):
            bar.update(len(done))
            yield from done


def write_corpus(recordings: list[PlannedReading], folder: Path, workers: int) -> None:
    """Synthesize the read-aloud utterances of the ASR and TTS splits and write them in LibriSpeech's layout."""
    where = {r.id: folder / r.split / str(r.speaker) / str(r.chapter) for r in recordings}
    for place in set(where.values()):
        place.mkdir(parents=True, exist_ok=True)
    minutes: dict[int, float] = defaultdict(float)
    for _, name, data in render_all(recordings, workers, "sentences"):
        (where[name] / f"{name}.flac").write_bytes(data)
        minutes[int(name.split("-")[0])] += soundfile.info(io.BytesIO(data)).duration / 60
    _write_transcripts(recordings, where)
    _write_speakers(recordings, minutes, folder / "SPEAKERS.TXT")
    _write_recordings(recordings, folder / "RECORDINGS.CSV")


def _write_transcripts(recordings: list[PlannedReading], where: dict[str, Path]) -> None:
    lines: dict[Path, list[str]] = defaultdict(list)
    for r in recordings:
        lines[where[r.id] / f"{r.speaker}-{r.chapter}.trans.txt"].append(f"{r.id} {r.text.upper()}\n")
    for path, content in lines.items():
        path.write_text("".join(sorted(content)), encoding="utf-8")


def _write_speakers(recordings: list[PlannedReading], minutes: dict[int, float], path: Path) -> None:
    rows = [";ID  |SEX| SUBSET           |MINUTES| NAME\n"]
    splits = sorted({(r.speaker, r.split, r.voice) for r in recordings})
    for (speaker, voice), group in itertools.groupby(splits, key=lambda s: (s[0], s[2])):
        subsets = " ".join(split for _, split, _ in group)
        sex = "F" if voices.is_female(voice) else "M"
        rows.append(f"{speaker:<4} | {sex} | {subsets:<16} | {minutes[speaker]:5.2f} | {voice}\n")
    path.write_text("".join(rows), encoding="utf-8")


def _write_recordings(recordings: list[PlannedReading], path: Path) -> None:
    """Write voice, speed, pitch and noise level of each recording to a CSV file, which LibriSpeech itself lacks."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "split", "voice", "speed", "pitch", "snr_db"])
        for r in recordings:
            snr = "" if r.noise_seed is None else f"{r.snr_db:.1f}"
            writer.writerow([r.id, r.split, r.voice, r.speed, r.pitch, snr])


COLUMNS = ("id", "split", "voice", "speed", "pitch", "kind")
DIALOG_COLUMNS = (*COLUMNS, "dialog", "turn", "template", "guess")


def write_questions(
    questions: list[PlannedReading],
    dialogs: list[PlannedTurn],
    more: list[PlannedTurn],
    written: list[list[DialogTurn]],
    folder: Path,
    workers: int,
) -> None:
    """Synthesize questions and dialogs, write a Parquet file for each split, and one with the recorded answers.

    Args:
        more: further dialogs, synthesized after the others, which do not depend on them.
        written: dialogs of which only the answers are synthesized.
    """
    _write_splits(questions, COLUMNS, folder, workers, "questions")
    for turns, title in ((dialogs, "dialogs"), (more, "more dialogs")):
        _write_splits(turns, DIALOG_COLUMNS, folder, workers, title)
    rows = [row for i, turns in enumerate(written) for row in dialog_plan.written(f"{WRITTEN_SPLIT}-{i:05d}", turns)]
    with whole_file(folder / f"{WRITTEN_SPLIT}.parquet") as path:
        pq.write_table(pa.Table.from_pylist(rows), path)
    read: list[tuple[str, str, bytes]] = []
    for group in (questions, dialogs, itertools.chain.from_iterable(written), more):
        new = {r.answer for r in group} - {text for _, text, _ in read}
        read += render_all(_answers(new), workers, "answers")
    table = pa.table({"t2": [text for _, text, _ in read], "a2": [sound for _, _, sound in read]}).sort_by("t2")
    pq.write_table(table, folder / "answers.parquet")


def _write_splits(
    recordings: list[PlannedReading], names: tuple[str, ...], folder: Path, workers: int, title: str
) -> None:
    sound = {name: data for _, name, data in render_all(recordings, workers, title)}
    for split in sorted({r.split for r in recordings}):
        rows = [r for r in recordings if r.split == split]
        columns = {key: [getattr(r, key) for r in rows] for key in names}
        columns |= {"t1": [r.text for r in rows], "t2": [r.answer for r in rows], "a1": [sound[r.id] for r in rows]}
        if "dialog" in columns:
            accepted = [list(r.accepted) or None for r in rows]
            columns["accepted"] = pa.array(accepted, pa.list_(pa.string()))
        with whole_file(folder / f"{split}.parquet") as path:
            pq.write_table(pa.table(columns), path)


def _answers(texts: set[str]) -> list[PlannedReading]:
    return [
        PlannedReading("answers", text, voices.ANSWER_VOICE, voices.ANSWER_SPEED, voices.ANSWER_PITCH, id=text)
        for text in sorted(texts)
    ]


def counts_of(recordings: list[PlannedReading]) -> dict[str, int]:
    splits = [r.split for r in recordings]
    return {split: splits.count(split) for split in dict.fromkeys(splits)}


def make_corpus(data_folder: str | Path, seed: int = 1, scale: float = 1.0, workers: int = 2) -> Path:
    """Synthesize all recordings unless the data folder has them already, and return the corpus folder.

    Args:
        scale: share of the full size, above 0 and at most 1.
        workers: number of processes.

    Raises:
        ValueError: the data folder holds a corpus of another seed or scale.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"--scale {scale}: must be above 0 and at most 1")
    data_folder = Path(data_folder)
    corpus, qa, ready = data_folder / "corpus", data_folder / "qa", data_folder / "corpus" / "READY"
    sentences, questions, dialogs = plan_corpus(seed, scale), plan_questions(seed, scale), plan_dialogs(seed, scale)
    more, written = plan_more_dialogs(seed, scale), draw_written_dialogs(seed, scale)
    in_qa = counts_of([*questions, *dialogs, *more])
    summary = {"seed": seed, "scale": scale, "corpus": counts_of(sentences), "qa": in_qa}
    summary["qa"][WRITTEN_SPLIT] = sum(map(len, written))
    if ready.exists():
        if json.loads(ready.read_text()) == summary:
            print(f"{corpus} is up to date")
            return corpus
        raise ValueError(f"--data_folder {data_folder}: holds another corpus ({ready.read_text().strip()}); remove it")
    for leftover in (corpus, qa):  # without READY they may be incomplete
        shutil.rmtree(leftover, ignore_errors=True)
    with whole_folder(qa) as aside:
        write_questions(questions, dialogs, more, written, aside, workers)
        crops = plan_crop_dialogs(seed, scale)
        _write_splits(crops, DIALOG_COLUMNS, aside, workers, "dialogs about interrupted answers")
    with whole_folder(corpus) as aside:
        write_corpus(sentences, aside, workers)
    write_text(ready, json.dumps(summary) + "\n")
    return corpus


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_folder", default=str(Path(__file__).parent / "data"), help="default: %(default)s")
    parser.add_argument("--seed", type=SEED, default=1, help="seed of texts and voices; default: %(default)s")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size; default: %(default)s")
    parser.add_argument("--workers", type=THREADS, default=2, help="number of processes; default: %(default)s")
    options = parser.parse_args()
    with full_disk_names(options.data_folder):
        corpus = make_corpus(options.data_folder, options.seed, options.scale, options.workers)
    print((corpus / "READY").read_text().strip())


if __name__ == "__main__":
    with bad_input_exits():
        main()
