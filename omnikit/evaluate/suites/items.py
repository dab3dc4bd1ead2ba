"""The questions of a prepared suite: a folder with a manifest, the published fields of each question, and a summary.

    manifest.jsonl  the questions as docs/data.md says, for `omnikit ask` and the suites' scripts
    items.jsonl     the same with the fields of the published row, unchanged
    suite.json      name and layout of the suite, numbers of questions by set, and what was skipped by reason
    audio/          recordings that the publisher embeds in tables
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omnikit.audio.io import wav_name
from omnikit.data.manifest_reader import Recording, read_manifest
from omnikit.data.skipped import Remark, Skipped
from omnikit.evaluate.qa import some
from omnikit.files import make_folder, read_text, write_bytes, write_json, write_text

MANIFEST, ITEMS, SUMMARY, AUDIO = "manifest.jsonl", "items.jsonl", "suite.json", "audio"
FORMAT = 1
"""Version of the files of a prepared suite, increased when they change."""
NO_TEXT = "(a question without a transcript)"
"""Text in the manifest of a question whose transcript is not published; it is not asked in writing."""
_ENDINGS = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3"}
"""Mapping from the first bytes of a sound file to the ending of its name."""


@dataclass(frozen=True)
class SuiteItem:
    """A question of a suite, with the answers that are right and what else its publisher says about it."""

    id: str
    """Unique in the suite: `<set>/<name>`."""
    set: str
    """Name of the set, which is scored on its own."""
    question: str
    """Text of the question; empty if the publisher gives none."""
    references: tuple[str, ...] = ()
    """Right answers; a suite's scorer says how they are compared."""
    language: str = "en"
    """ISO 639-1 code of question and answer; "" = unknown."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the published row, unchanged."""
    audio: Recording | None = None
    """Recording of the question: a file, or embedded bytes (`Recording(id, table=[data])`)."""
    dialog: str = ""
    """Name of the conversation that the question is a round of; "" = it is asked alone."""
    turn: int | None = None
    """Place of the question in its conversation, from 0."""

    @property
    def place(self) -> dict[str, Any]:
        """Conversation and place in it, as fields of a manifest; empty for a question that is asked alone."""
        return {"dialog": self.dialog, "turn": self.turn} if self.dialog else {}


@dataclass(frozen=True)
class SuiteItems:
    """The questions of a prepared suite."""

    folder: Path
    items: list[SuiteItem]
    about: Mapping[str, Any]
    """Content of `suite.json`."""

    @property
    def manifest(self) -> Path:
        """Path of the manifest of all questions."""
        return self.folder / MANIFEST

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets that have questions, in the order of the items."""
        return tuple(dict.fromkeys(item.set for item in self.items))

    def of(self, name: str) -> list[SuiteItem]:
        """Return the questions of one set."""
        return [item for item in self.items if item.set == name]


def write_items(folder: Path, suite: str, layout: str, items: Iterable[SuiteItem | Remark]) -> SuiteItems:
    """Write the questions of a suite to a folder, which is complete when its `suite.json` is there.

    A question whose recording does not exist is skipped. Remarks are counted.

    Args:
        folder: folder that is created if it does not exist.
        suite: name of the suite.
        layout: layout that the questions were read from, see `Suite.layout`.
        items: questions, and remarks about rows that are no usable question.

    Raises:
        ValueError: two questions have the same id, there is none, or the folder cannot be written.
    """
    skipped, kept, seen = Skipped(), [], set()
    make_folder(folder)
    (folder / SUMMARY).unlink(missing_ok=True)
    for item in items:
        if not isinstance(item, Remark) and item.id in seen:
            raise ValueError(f"{suite}: two questions have the id {item.id!r}")
        problem = item if isinstance(item, Remark) else _problem(item)
        if problem is not None:
            skipped.add(problem.reason, problem.example)
            continue
        seen.add(item.id)
        kept.append((replace(item, audio=None), _path_of(folder, item)))  # without embedded bytes, which may be large
    if not kept:
        raise ValueError(f"{suite}: no question can be used; skipped: {skipped}")
    write_text(folder / MANIFEST, "".join(_line(_entry(item, path)) for item, path in kept))
    refused = read_manifest(folder / MANIFEST).skipped
    if refused:
        raise ValueError(f"{suite}: questions that no manifest can hold: {refused}")
    write_text(folder / ITEMS, "".join(_line(_fields(item, path)) for item, path in kept))
    questions = "".join(_line(_fields(item, None)) for item, _ in kept)  # wherever the recordings lie
    about = {
        "format": FORMAT,
        "suite": suite,
        "layout": layout,
        "sets": dict(Counter(item.set for item, _ in kept)),
        "skipped": dict(skipped.reasons),
        "examples_of_skipped": dict(skipped.examples),
        "digest": hashlib.sha256(questions.encode()).hexdigest()[:16],
    }
    write_json(folder / SUMMARY, about)
    return SuiteItems(folder, [_item(_fields(item, path), folder) for item, path in kept], about)


def _problem(item: SuiteItem) -> Remark | None:
    """Return why a question cannot be used: its recording does not exist, or a text has characters that no file has."""
    if item.audio is not None and item.audio.path is not None and not Path(item.audio.path).is_file():
        return Remark("missing", item.audio.path)
    try:
        _line(_fields(item, None)).encode()
    except UnicodeEncodeError:
        return Remark("not UTF-8", item.id.encode(errors="backslashreplace").decode())
    return None


def read_items(folder: str | Path, suite: str, layout: str) -> SuiteItems:
    """Read the questions of a prepared suite.

    Raises:
        ValueError: the folder is not a prepared suite, or is one of another suite, layout or version.
    """
    folder = Path(folder)
    if not (folder / SUMMARY).is_file():
        raise ValueError(f"--data_folder {folder}: no {SUMMARY} there; prepare the suite with its prepare.py first")
    about = _json(read_text(folder / SUMMARY), folder / SUMMARY)
    if about.get("suite") != suite:
        raise ValueError(f"--data_folder {folder}: holds the suite {about.get('suite')!r}, not {suite!r}")
    for key, wanted in (("layout", layout), ("format", FORMAT)):
        if about.get(key) != wanted:
            raise ValueError(
                f"--data_folder {folder}: was prepared from {key} {about.get(key)!r}, this version reads {wanted!r}; "
                "prepare it again"
            )
    path = folder / ITEMS
    lines = read_text(path).split("\n") if path.is_file() else []
    items = [_item(_json(line, path), folder) for line in lines if line]
    if Counter(item.set for item in items) != about["sets"]:
        raise ValueError(f"{path}: does not hold the questions that {SUMMARY} counts; prepare the suite again")
    return SuiteItems(folder, items, about)


def chosen_sets(found: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Return the names of the sets to score: those wanted, or all that were found if `wanted` is None.

    Raises:
        ValueError: a wanted set has no questions.
    """
    names = list(found) if wanted is None else list(dict.fromkeys(wanted))
    unknown = [name for name in names if name not in found]
    if unknown or not names:
        raise ValueError(f"--sets {', '.join(map(str, unknown)) or names}: no such set (choices: {', '.join(found)})")
    return names


def some_items(items: Sequence[SuiteItem], limit: int | None) -> list[SuiteItem]:
    """Return `limit` questions drawn at random with a fixed seed; all if there are no more or `limit` is None.

    A conversation counts as one, and all of its rounds belong to it.
    """
    groups: dict[str, list[SuiteItem]] = {}
    for item in items:
        groups.setdefault(item.dialog or item.id, []).append(item)
    return [item for group in some(list(groups.values()), limit) for item in group]


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _json(text: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: was not written by a suite's prepare.py; prepare it again")
    return found


def _path_of(folder: Path, item: SuiteItem) -> str | None:
    """Return the path of a question's recording for the manifest; embedded bytes are written to a file."""
    if item.audio is None:
        return None
    if item.audio.path is not None:
        return str(Path(item.audio.path).absolute())
    data = bytes(item.audio.source)
    ending = next((ending for begin, ending in _ENDINGS.items() if data.startswith(begin)), ".audio")
    name = f"{AUDIO}/{wav_name(item.id).removesuffix('.wav')}{ending}"
    if not (folder / name).is_file() or (folder / name).read_bytes() != data:
        write_bytes(folder / name, data)
    return name


def _entry(item: SuiteItem, path: str | None) -> dict[str, Any]:
    """Return a question as a manifest entry."""
    entry = {"id": item.id, "t1": item.question.strip() or NO_TEXT, "kind": item.set, "language": item.language}
    entry |= item.place | ({"a1": path} if path is not None else {})
    return entry | ({"accepted": list(item.references)} if item.references else {})


def _fields(item: SuiteItem, path: str | None) -> dict[str, Any]:
    return {
        "id": item.id,
        "set": item.set,
        "question": item.question,
        "references": list(item.references),
        "language": item.language,
        "audio": path,
        **item.place,
        "fields": dict(item.fields),
    }


def _item(line: Mapping[str, Any], folder: Path) -> SuiteItem:
    audio = None if line["audio"] is None else Recording(line["id"], path=str((folder / line["audio"]).absolute()))
    return SuiteItem(
        line["id"], line["set"], line["question"], tuple(line["references"]), line["language"], line["fields"], audio,
        line.get("dialog", ""), line.get("turn"),
    )  # fmt: skip
