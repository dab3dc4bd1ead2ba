"""The files of URO-Bench: the published questions, and answers as the project's scripts read them.

Questions: `<level>/<set>/test.jsonl` with recordings beside it. Answers, as examples/example-test/inference_for_eval.py
and inference_multi.py write them (Ruiqi-Yan/URO-Bench at 9e74bc04):

    <level>/<set>/test.jsonl                       the published rows that were asked
    <level>/<set>/{pred,question,gt}_text.jsonl    {"0000": text}, numbered as the lines of test.jsonl
    <level>/<set>/asr_text.jsonl                   what a recogniser heard, as asr_for_eval.py writes it
    <level>/<set>/audio/0000.wav
    <level>/<set>/output_with_text.jsonl, <id>/chat_0.wav    for conversations, in place of these
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omnikit.evaluate.suites.answering import StoredAnswer
from omnikit.evaluate.suites.items import SuiteItem
from omnikit.evaluate.suites.published_files import check_fields, jsonl_rows, recording
from omnikit.evaluate.suites.urobench_sets import FIELDS_OF_MODE, LEVELS, SETS, UROSet
from omnikit.files import make_folder, remove, whole_text

TEST, ROOTS, ARCHIVES = "test.jsonl", ("", "URO-Bench-data", "URO-Bench-mini"), "URO-Bench-*.zip"
HEARD = "asr_text.jsonl"
NOTHING = " "
"""Text of an answer that has none, as asr_for_eval.py writes it where there is no recording."""


def published_root(source: Path) -> Path:
    """Return the folder that has the folders of the levels.

    Raises:
        ValueError: there is none; if there is only the archive, the message says that it has to be unpacked.
    """
    for name in ROOTS:
        if any((source / name / level).is_dir() for level in LEVELS):
            return source / name
    archive = next(iter(sorted(source.glob(ARCHIVES))), None)
    if archive is not None:
        raise ValueError(f"{archive}: is packed; unpack it, and give the folder with {' and '.join(LEVELS)}")
    raise ValueError(f"{source}: holds none of the folders {', '.join(LEVELS)}, as URO-Bench does")


def read_set(root: Path, each: UROSet) -> Iterator[SuiteItem]:
    """Yield the questions of a set, one for each round of a conversation; nothing if there is no such set.

    Raises:
        ValueError: a row lacks a field.
    """
    path = root / each.level / each.name / TEST
    if not path.is_file():
        return
    wanted = (
        ("id", "dialogue") if each.has_rounds else ("source_wav", "source_text", *FIELDS_OF_MODE.get(each.mode, ()))
    )
    for number, row in enumerate(jsonl_rows(path, wanted)):
        if each.has_rounds:
            yield from _rounds(path, number, row, each)
        else:
            yield _question(f"{each.name}/{number:04d}", row, row, path.parent, each)


def _question(name: str, row: Mapping[str, Any], fields: Mapping[str, Any], folder: Path, each: UROSet) -> SuiteItem:
    return SuiteItem(
        name, each.name, row["source_text"], _references(row), each.spoken_language, fields,
        recording(name, row["source_wav"], folder),
    )  # fmt: skip


def _rounds(path: Path, number: int, row: Mapping[str, Any], each: UROSet) -> Iterator[SuiteItem]:
    if not isinstance(row["dialogue"], list) or not row["dialogue"]:
        raise ValueError(f"{path}: line {number + 1} has no rounds in 'dialogue': another version of the suite")
    if Path(str(row["id"])).name != str(row["id"]):
        raise ValueError(f"{path}: line {number + 1}: id {row['id']!r} is no name of a folder")
    dialog = f"{each.name}/{number:04d}"
    for place, turn in enumerate(row["dialogue"]):
        where = f"{path}: line {number + 1}, round {place}"
        check_fields(where, turn, ("round", "source_wav", "source_text", "target_text"))
        if turn["round"] != place:
            raise ValueError(f"{where}: is called {turn['round']!r}: another version of the suite")
        yield replace(_question(f"{dialog}-{place}", turn, row, path.parent, each), dialog=dialog, turn=place)


def _references(row: Mapping[str, Any]) -> tuple[str, ...]:
    found = row.get("target_text", [])
    return tuple(map(str, found)) if isinstance(found, list) else (str(found),)


def reference_text(item: SuiteItem) -> str:
    """Return the reference of a question as the project's scripts have it: several joined, without any the question."""
    return " / ".join(item.references) or item.question


def scored_text(answer: StoredAnswer) -> str:
    """Return the text of an answer that the project's scripts score: what was heard, or else the text itself."""
    return answer.text if answer.heard is None else answer.heard.strip() or NOTHING


def conversations(items: Sequence[SuiteItem]) -> list[list[SuiteItem]]:
    """Return the rounds of each conversation of which all rounds are among the items, in order."""
    found: dict[str, list[SuiteItem]] = {}
    for item in items:
        found.setdefault(item.dialog, []).append(item)
    rounds = [sorted(each, key=lambda item: item.turn) for each in found.values()]
    return [each for each in rounds if len(each) == len(each[0].fields["dialogue"])]


def write_answers(folder: Path, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer]) -> None:
    """Write the answers to questions of all sets; those of an earlier run are replaced, scores beside them stay."""
    for each in SETS.values():
        asked = [item for item in items if item.set == each.name]
        if not asked:
            continue
        place = folder / each.level / each.name
        make_folder(place)
        if each.has_rounds:
            _write_conversations(place, conversations(asked), answers)
        else:
            _write_questions(place, asked, answers)


def _write_questions(folder: Path, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer]) -> None:
    given = [answers[item.id] for item in items]
    for old in (folder / "audio", folder / HEARD):
        remove(old)
    _write_rows(folder / TEST, [item.fields for item in items])
    _write_numbered(folder / "pred_text.jsonl", [each.text for each in given])
    _write_numbered(folder / "question_text.jsonl", [item.question for item in items])
    _write_numbered(folder / "gt_text.jsonl", [reference_text(item) for item in items])
    if any(each.heard is not None for each in given):
        _write_numbered(folder / HEARD, [scored_text(each) for each in given])
    for number, each in enumerate(given):
        _place(each.wav, folder / "audio" / f"{number:04d}.wav")


def _write_conversations(
    folder: Path, found: Sequence[Sequence[SuiteItem]], answers: Mapping[str, StoredAnswer]
) -> None:
    rows = [rounds[0].fields for rounds in found]
    remove(folder / HEARD)
    _write_rows(folder / TEST, rows)

    def with_texts(said: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        return [
            {
                "id": row["id"],
                "num_round": len(texts),
                "dialogue": [{**turn, "output_text": text} for turn, text in zip(row["dialogue"], texts, strict=True)],
            }
            for row, texts in zip(rows, said, strict=True)
        ]

    given = [[answers[item.id] for item in rounds] for rounds in found]
    _write_rows(folder / "output_with_text.jsonl", with_texts([[each.text.strip() for each in g] for g in given]))
    if any(each.heard is not None for g in given for each in g):
        heard = [[scored_text(each) for each in g] for g in given]
        _write_rows(folder / HEARD, with_texts(heard))
    for row, replies in zip(rows, given, strict=True):
        for place, each in enumerate(replies):
            _place(each.wav, folder / str(row["id"]) / f"chat_{place}.wav")


def _write_numbered(path: Path, texts: Sequence[str]) -> None:
    _write_rows(path, [{f"{number:04d}": text} for number, text in enumerate(texts)])


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with whole_text(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _place(wav: Path | None, path: Path) -> None:
    """Put a recording at a path: the same file where the disk allows it, else a copy; nothing without a recording."""
    remove(path)
    if wav is None:
        return
    make_folder(path.parent)
    try:
        path.hardlink_to(wav)
    except OSError:
        shutil.copyfile(wav, path)
