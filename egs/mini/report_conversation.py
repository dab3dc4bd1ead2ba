"""Holds a conversation with a system for its report: the questions of a dialog of the corpus, the last one typed."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import report_tables as tables

from omnikit.api import Omni
from omnikit.audio.io import save_audio
from omnikit.data.manifest_reader import ManifestEntry, read_manifest
from omnikit.evaluate.dialogs import group_dialogs
from omnikit.files import write_text

FOLLOW_UP = "follow-"
"""Beginning of the kind of questions that need the turns before them."""


@dataclass(frozen=True)
class HeldTurn:
    """A turn of a conversation that was held: its texts and the answer that the corpus has.

    The sound of an answer, and that of a spoken question, are in files of the same folder.
    """

    question: str
    typed: bool
    answer: str
    right: str


def choose_dialog(file: str | Path, cache_folder: str | Path) -> Sequence[ManifestEntry]:
    """Return the turns of the dialog of a manifest with the most follow-up questions, the first of several.

    Raises:
        ValueError: the manifest cannot be read, or has no dialog.
    """
    dialogs, _ = group_dialogs(read_manifest(file, cache_folder))
    if not dialogs:
        raise ValueError(f"--dialogs {file}: has no dialog")
    return max((dialog.turns for dialog in dialogs), key=lambda turns: sum(map(is_follow_up, turns)))


def is_follow_up(turn: ManifestEntry) -> bool:
    """Return whether the question of a turn needs the turns before it."""
    return turn.kind.startswith(FOLLOW_UP)


def converse(omni: Omni, turns: Sequence[ManifestEntry], folder: Path) -> None:
    """Ask a system the questions of a dialog in one conversation, and store questions and answers in a folder.

    The last question is typed, and so is one without a recording. The folder is emptied first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    conversation, rate = omni.conversation(), omni.model.encoder.sample_rate
    for number, turn in enumerate(turns):
        typed = turn.a1 is None or number == len(turns) - 1
        if typed:
            reply = conversation.say(turn.t1)
        else:
            wav = turn.a1.load(rate)
            save_audio(folder / f"{number:02d}-question.wav", wav, rate)
            reply = conversation.ask(wav)
        save_audio(folder / f"{number:02d}-answer.wav", reply.wav, reply.sample_rate)
        held = HeldTurn(turn.t1, typed, reply.text, turn.t2)
        write_text(folder / f"{number:02d}.json", json.dumps(asdict(held)) + "\n")


def conversation_table(folder: Path, player: Callable[[Path], str]) -> str:
    """Return an HTML table of the conversation that `converse` has stored in a folder.

    Args:
        player: function that returns the HTML element that plays a sound file.
    """
    rows = []
    for path in sorted(folder.glob("*.json")):
        turn = HeldTurn(**json.loads(path.read_text(encoding="utf-8")))
        sound = "typed" if turn.typed else player(folder / f"{path.stem}-question.wav")
        answer = html.escape(turn.answer) or "(no text)"
        if turn.answer.strip() != turn.right:
            answer += f' <span class="note">(right: {html.escape(turn.right)})</span>'
        rows.append([html.escape(turn.question), sound, answer, player(folder / f"{path.stem}-answer.wav")])
    if not rows:
        missing = "no trained system in stage3/, anneal/ or continue/, or no --dialogs"
        return tables.not_run(f"no conversation was held ({missing})")
    return tables.table(["Questions", "", "Answers", ""], rows, "mixed")
