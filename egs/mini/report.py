"""Writes a self-contained HTML report about a run: `python report.py --results results` writes `results/report.html`.

The report shows what exists of `stage1..3/train_log.jsonl`, `asr/asr.json`, `qa/qa.json`, `tts/tts.json` and
`dialogs/dialogs.json`, and lists the rest as not run. Before that, the system in `--checkpoint` answers the questions
in `--questions`; the answers are stored in `<results>/answers`, the first one also as `<results>/answer.wav` and
`answer.txt`. Then it is asked the questions of a dialog in `--dialogs`, which are stored in `<results>/conversation`.
"""

from __future__ import annotations

import base64
import html
import json
import mimetypes
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from string import Template

import followups
import report_conversation
import report_pictures as pictures
import report_tables as tables
import stages

from omnikit.api import Omni, load
from omnikit.audio.io import load_audio, save_audio
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.files import write_bytes, write_text
from omnikit.train.plot_curves import read_log

HERE = Path(__file__).parent
QUESTIONS = [HERE / "questions" / f"{name}.wav" for name in ("capital", "sum", "color", "day", "opposite", "greeting")]
RATE = 16000  # sample rate of the spectrograms in Hz


@dataclass(frozen=True)
class AnsweredQuestion:
    """A spoken question and its answer: sound files, the answer's text, and the seconds that it took."""

    name: str
    question: Path
    answer: Path
    text: str
    seconds_taken: float


def ask(omni: Omni, questions: list[Path], folder: Path) -> None:
    """Ask a system questions, and store each question with its answer, text and duration in a folder.

    The folder is emptied first. The first answer is also stored in the parent folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, question in enumerate(questions):
        began = time.perf_counter()
        reply = omni.ask(question)
        about = {"name": question.stem, "text": reply.text, "seconds_taken": time.perf_counter() - began}
        stem = f"{number:02d}-{question.stem}"
        write_bytes(folder / f"{stem}-question{question.suffix}", question.read_bytes())
        save_audio(folder / f"{stem}-answer.wav", reply.wav, reply.sample_rate)
        write_text(folder / f"{stem}.json", json.dumps(about) + "\n")
        if number == 0:
            save_audio(folder.parent / "answer.wav", reply.wav, reply.sample_rate)
            write_text(folder.parent / "answer.txt", reply.text + "\n")


def read_answers(folder: Path) -> list[AnsweredQuestion]:
    """Return the questions and answers that `ask` has stored in a folder, in the order in which they were asked."""
    found = []
    for path in sorted(folder.glob("*.json")):
        question, answer = next(folder.glob(f"{path.stem}-question.*"), None), folder / f"{path.stem}-answer.wav"
        if question is not None and answer.is_file():
            found.append(
                AnsweredQuestion(question=question, answer=answer, **json.loads(path.read_text(encoding="utf-8")))
            )
    return found


def player(path: Path) -> str:
    """Return an HTML audio element with an embedded sound file."""
    kind, data = mimetypes.guess_type(path)[0], base64.b64encode(path.read_bytes()).decode()
    return f'<audio controls preload="metadata" src="data:{kind};base64,{data}"></audio>'


def picture(png: bytes, text: str) -> str:
    """Return an HTML image element with an embedded PNG and an alternative text."""
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def answered(spoken: list[AnsweredQuestion]) -> str:
    """Return HTML with the first question and answer and their spectrograms, and a table of the others."""
    if not spoken:
        return tables.not_run("no question was asked (no trained system in stage3/, anneal/ or continue/)")
    first, *others = spoken
    wavs = [load_audio(path, RATE) for path in (first.question, first.answer)]
    longest = max(len(wav) for wav in wavs) / RATE
    parts = ['<div class="turns">']
    for title, path, wav in (("Question", first.question, wavs[0]), ("Answer", first.answer, wavs[1])):
        seen = picture(pictures.spectrogram(wav, RATE, longest), f"spectrogram of the {title.lower()}")
        parts.append(f'<div class="turn"><h3>{title}</h3>{player(path)}{seen}</div>')
    parts.append(f"</div><blockquote>{html.escape(first.text) or '(no text)'}</blockquote>")
    parts.append(f'<p class="note">{tables.sound_facts(wavs[1], RATE, first.seconds_taken)}</p>')
    if others:
        rows = [[html.escape(s.name), player(s.question), html.escape(s.text), player(s.answer)] for s in others]
        parts.append(tables.table(["More questions", "", "Answers", ""], rows, "mixed"))
    return "\n".join(parts)


def learning(results: Path) -> str:
    """Return HTML with the learning curves of the stages that were trained, and a list of those that were not."""
    files = {title: results / name / "train_log.jsonl" for name, title in stages.TITLES.items()}
    logs = {title: lines for title, file in files.items() if file.is_file() and (lines := read_log(file))}
    missing = [title for stage in stages.trained_stages(results) if (title := stages.TITLES[stage.name]) not in logs]
    parts = []
    if logs:
        progress = pictures.progress(logs)
        parts += [picture(progress, "validation figures over the stages")] if progress else []
        parts.append(picture(pictures.losses(logs), "loss per stream"))
    if missing:
        parts.append(tables.not_run(f"no training log of {', '.join(missing).lower()}"))
    return "\n".join(parts)


def build_page(results: Path) -> str:
    """Return the complete HTML page of the report about the results of a run."""
    asr, qa, tts, dialogs = (_json(results / name / f"{name}.json") for name in ("asr", "qa", "tts", "dialogs"))
    return Template((HERE / "report_page.html").read_text(encoding="utf-8")).substitute(
        words=len(followups.vocabulary()),
        when=time.strftime("%Y-%m-%d %H:%M"),
        tiles=tables.tiles(asr, qa, tts, dialogs),
        answered=answered(read_answers(results / "answers")),
        conversation=report_conversation.conversation_table(results / "conversation", player),
        recognition=tables.recognition(asr),
        questions=tables.questions(qa),
        dialogs=tables.dialogs(dialogs),
        intelligibility=tables.intelligibility(qa, tts),
        speed=tables.speed(qa, tts),
        learning=learning(results),
    )


def _json(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", default=str(HERE / "results"), help="folder of the run; default: %(default)s")
    parser.add_argument("--checkpoint", help="system that answers; default: the last stage of the results")
    parser.add_argument("--device", default="cpu", help="device of the system, such as cuda; default: %(default)s")
    parser.add_argument(
        "--questions", nargs="*", default=QUESTIONS, type=Path, help="sound files, or none; default: six in questions/"
    )
    parser.add_argument(
        "--dialogs", metavar="FILE", help="manifest of dialogs, of which the system is asked one; default: none"
    )
    options = parser.parse_args()
    results = Path(options.results)
    if not results.is_dir():
        raise ValueError(f"--results {results}: no such folder")
    trained = stages.trained_stages(results)[-1]
    checkpoint = options.checkpoint or (trained if stages.has_weights(trained) else None)
    if checkpoint is not None and (options.questions or options.dialogs):
        omni = load(checkpoint, device=options.device)
        if options.questions:
            ask(omni, options.questions, results / "answers")
        if options.dialogs:
            turns = report_conversation.choose_dialog(options.dialogs, results / "cache")
            report_conversation.converse(omni, turns, results / "conversation")
    page = results / "report.html"
    write_text(page, build_page(results))
    print(page)


if __name__ == "__main__":
    with bad_input_exits():
        main()
