"""Full-Duplex-Bench, version 1: when a system takes the turn, and how fast.

The layout and the figures are those of DanielLin94144/Full-Duplex-Bench at d7336bda (`v1_v1.5/dataset/README.md`,
`v1_v1.5/evaluation/eval_*.py`): a folder for each recording with `input.wav` and an annotation, to which `output.wav`,
on the same clock, and `output.json` with the times of the words in it are added.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import jensenshannon

from omnikit.audio.io import load_audio
from omnikit.data.manifest_reader import Recording
from omnikit.data.skipped import Remark
from omnikit.errors import one_line, writing
from omnikit.evaluate.speech_segments import speech_segments
from omnikit.evaluate.suites.answering import StoredAnswer
from omnikit.evaluate.suites.items import SuiteItem
from omnikit.evaluate.suites.judges import JudgeRequest, LLMJudge
from omnikit.evaluate.suites.suite import NEEDS_JUDGE, Metric, Suite
from omnikit.files import make_folder, read_text
from omnikit.serve.realtime.voice_activity import RATE

PAUSE, TURN, BACKCHANNEL, INTERRUPTION = "pause_handling", "smooth_turn_taking", "backchannel", "user_interruption"
"""Tasks of the suite, as `evaluate.py` of its code calls them."""
TASKS = {
    "candor_pause_handling": PAUSE,
    "candor_turn_taking": TURN,
    "icc_backchannel": BACKCHANNEL,
    "synthetic_pause_handling": PAUSE,
    "synthetic_user_interruption": INTERRUPTION,
}
"""Mapping from the folders of the data set to their tasks."""
ANNOTATIONS = {PAUSE: "pause.json", TURN: "turn_taking.json", INTERRUPTION: "interrupt.json"}
"""Mapping from task to the file that says when pauses, ends of turns and interruptions are."""
NEWER_SETS = ("user_interruption", "user_backchannel", "talking_to_other", "background_speech")
"""Folders of version 1.5 of the suite."""
INPUT, OUTPUT, WORDS, RECORD = "input.wav", "output.wav", "output.json", "session.json"
"""Names of the files of a recording; the last one says what happened in the session, and is not read by the suite."""
TAKE_OVER, LATENCY, RATING = "take-over rate", "latency, s", "rating, 0 to 5"
FREQUENCY, DIVERGENCE, STOP = "backchannels per s", "JSD of backchannels", "stop latency, s"
NEEDS_CODE = "open: needs a file of the suite's code (--suite_code)"
NO_TURN = "open: the system took no turn"
_SHORT_SECONDS, _SHORT_WORDS = 1.0, 3  # below both, an answer does not take the turn
_LONG_SEGMENT, _SHORT_SEGMENT, _SEGMENT_WORDS = 3.0, 1.0, 2  # the same for stretches of speech, see `backchannels`
_BIN, _EPSILON = 0.2, 1e-10  # seconds of a bin of the distribution of backchannels, and what each bin has at least
_RATING = re.compile(r"\brate the AI's response as \[?(\d+)")


class FullDuplexBench(Suite):
    """The suite Full-Duplex-Bench, version 1.

    Args:
        code: the folder `v1_v1.5/evaluation` of the suite's code, for the figures that need a file of it; None = these
            are open.
    """

    name = "FullDuplexBench"
    layout = "DanielLin94144/Full-Duplex-Bench v1 at d7336bda"
    sets = tuple(TASKS)

    def __init__(self, code: Path | None = None):
        super().__init__()
        self.code = None if code is None else SuiteCode(code)

    def read(self, source: Path) -> Iterator[SuiteItem | Remark]:
        """Yield the recordings of a folder with the sets of version 1; see `Suite.read`."""
        folders = {name: folder for name in TASKS if (folder := _set_folder(source, name)) is not None}
        if not folders:
            newer = [name for name in NEWER_SETS if (source / name).is_dir()]
            also = f"; it has {newer[0]}, a set of version 1.5" if newer else ""
            raise ValueError(f"--data_folder {source}: has none of {', '.join(TASKS)}{also}")
        for name, folder in folders.items():
            for path in sorted(filter(Path.is_dir, folder.iterdir()), key=_number):
                yield _item(name, path)

    def score(
        self, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer], judge: LLMJudge | None
    ) -> list[Metric]:
        """Return the figures of one set; each answer's `wav` is an `output.wav` with `output.json` beside it."""
        task = TASKS[items[0].set] if items else PAUSE
        outputs = [(item, Output(answers[item.id].wav.parent)) for item in items]
        if task == BACKCHANNEL:
            return self._backchannels(outputs)
        found = [_rate(TAKE_OVER, [output.takes_turn for _, output in outputs], "lower" if task == PAUSE else "higher")]
        if task != PAUSE:
            turns = [output.begin - _awaited(item) for item, output in outputs if output.takes_turn]
            found.append(_mean(LATENCY, [max(0.0, seconds) for seconds in turns]))
        if task == INTERRUPTION:
            found += [self._rating(outputs, judge), _stop_latency(outputs)]
        return found

    def write_official(self, folder: Path, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer]) -> None:
        """Write the annotations that the suite's scorers read beside the outputs, to `<set>/<name>` in a folder."""
        for item in items:
            place, annotation = folder / item.id, ANNOTATIONS.get(TASKS[item.set])
            make_folder(place)
            if annotation is not None:
                with writing(place / annotation):
                    shutil.copyfile(Path(item.audio.path).parent / annotation, place / annotation)

    def _rating(self, outputs: Sequence[tuple[SuiteItem, Output]], judge: LLMJudge | None) -> Metric:
        """Return the mean rating of the answers to interruptions, for those that take the turn."""
        asked = [(item, output) for item, output in outputs if output.takes_turn]
        if judge is None or self.code is None:
            return Metric(RATING, None, len(asked), NEEDS_JUDGE if judge is None else NEEDS_CODE)
        requests = [self.code.rating_request(item.fields["interrupt"][0], output.text) for item, output in asked]
        found = [_RATING.search(said) for said in judge.ask_all(requests, RATING)]
        unclear = found.count(None)
        note = f"{unclear} judgements have no rating, and are left out" if unclear else None
        return _mean(RATING, [float(each[1]) for each in found if each is not None], "higher", note)

    def _backchannels(self, outputs: Sequence[tuple[SuiteItem, Output]]) -> list[Metric]:
        heard = [(Path(item.id).name, output, *backchannels(output.segments, output.times)) for item, output in outputs]
        found = [_rate(TAKE_OVER, [turn for _, _, turn, _ in heard], "lower")]
        found.append(_mean(FREQUENCY, [len(short) / output.seconds for _, output, _, short in heard], "higher"))
        if self.code is None:
            return [*found, Metric(DIVERGENCE, None, len(heard), NEEDS_CODE, "lower")]
        people = self.code.distributions
        known = [(people[name], output, short) for name, output, _, short in heard if name in people]
        left = len(heard) - len(known)
        note = f"{left} recordings have no distribution in the suite's code, and are left out" if left else None
        values = [divergence(short, output.seconds, distribution) for distribution, output, short in known]
        return [*found, _mean(DIVERGENCE, values, note=note)]


@dataclass(frozen=True)
class SuiteCode:
    """The files of the suite's code that figures need; they are read, never run, and not part of omnikit.

    Args:
        folder: the folder `v1_v1.5/evaluation`.

    Raises:
        ValueError: the folder has no such files.
    """

    folder: Path

    def __post_init__(self) -> None:
        for name in ("icc_gt_distribution.json", "eval_user_interruption.py"):
            if not (self.folder / name).is_file():
                raise ValueError(f"--suite_code {self.folder}: has no {name}; give v1_v1.5/evaluation of the suite")

    @cached_property
    def distributions(self) -> dict[str, list[float]]:
        """Distribution of people's backchannels over a recording of `icc_backchannel`, by its name."""
        return json.loads(read_text(self.folder / "icc_gt_distribution.json"))

    def rating_request(self, interrupt: Mapping[str, Any], answer: str) -> JudgeRequest:
        """Return the suite's request to rate the answer to an interruption.

        Args:
            interrupt: annotation of the interruption, with `context` and `interrupt`.
            answer: what the system said after it.
        """
        names = {"in_before_interrupt_text": interrupt["context"], "in_interrupt_text": interrupt["interrupt"]}
        names |= {"out_after_interrupt_text": answer}
        system, prompt = self._prompts
        return JudgeRequest(_filled(prompt, names), system=_filled(system, names))

    @cached_property
    def _prompts(self) -> tuple[ast.expr, ast.expr]:
        """Expressions of the system prompt and the prompt in the suite's script."""
        path = self.folder / "eval_user_interruption.py"
        found = {}
        for node in ast.walk(ast.parse(read_text(path))):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node.value
        if not {"system_msg", "user_msg"} <= found.keys():
            raise ValueError(f"--suite_code {path}: has no system_msg and user_msg: another version of the suite")
        return found["system_msg"], found["user_msg"]


class Output:
    """The speech of a system to one recording: `output.wav`, and `output.json` with the times of its words.

    Raises:
        ValueError: a file is missing or has another form.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / WORDS
        try:
            found = json.loads(read_text(path))
            self.text: str = found["text"]
            self.times = [(float(begin), None if end is None else float(end)) for begin, end in _timestamps(found)]
        except (ValueError, KeyError, TypeError) as error:
            problem = one_line(error, 80)
            raise ValueError(f"{path}: must have `text`, and `chunks` with timestamps ({problem})") from None

    @property
    def begin(self) -> float:
        """Second at which the first word begins."""
        return self.times[0][0]

    @property
    def takes_turn(self) -> bool:
        """Whether the words take the turn: they last for a second, or are more than three."""
        if not self.times:
            return False
        begin, end = self.times[-1]
        last = begin if end is None else end
        return last - self.begin >= _SHORT_SECONDS or len(self.times) > _SHORT_WORDS

    @cached_property
    def wav(self) -> np.ndarray:
        """Samples [n] of `output.wav` at 16 kHz."""
        return load_audio(self.folder / OUTPUT, RATE, max_seconds=None).numpy()

    @property
    def seconds(self) -> float:
        """Length of `output.wav` in seconds."""
        return len(self.wav) / RATE

    @property
    def segments(self) -> list[tuple[float, float]]:
        """Stretches of speech in `output.wav` in seconds."""
        return speech_segments(self.wav)

    @cached_property
    def record(self) -> dict[str, Any] | None:
        """Record of the simulated session; None if the output was not made by one."""
        path = self.folder / RECORD
        return json.loads(read_text(path)) if path.is_file() else None


def backchannels(
    segments: Sequence[tuple[float, float]], times: Sequence[tuple[float, float | None]]
) -> tuple[bool, list[tuple[float, float]]]:
    """Return whether stretches of speech take the turn, and those that are counted as backchannels.

    As in the suite's script a stretch of more than 3 s takes the turn and ends the search. Without one, the last one
    decides: it takes the turn if it lasts a second or has more than two words. All that were looked at are counted.

    Args:
        segments: stretches of speech in seconds.
        times: begins and ends of words in seconds.
    """
    turn, short = False, []
    for begin, end in segments:
        if end - begin > _LONG_SEGMENT:
            return True, short
        turn = end - begin >= _SHORT_SEGMENT or sum(_within(word, begin, end) for word in times) > _SEGMENT_WORDS
        short.append((begin, end))
    return turn, short


def divergence(segments: Sequence[tuple[float, float]], seconds: float, people: Sequence[float]) -> float:
    """Return the Jensen-Shannon distance of backchannels to people's, over the time of a recording; 1 if there is none.

    The suite calls it divergence; it is the square root of that to base e, as scipy's `jensenshannon` computes.

    Args:
        segments: backchannels in seconds.
        seconds: length of the recording.
        people: distribution of people's backchannels over equal parts of the recording.
    """
    if not segments:
        return 1.0
    bins = np.zeros(int(seconds / _BIN) + 1)
    for begin, end in segments:
        bins[int(begin / _BIN) : int(end / _BIN) + 1] += 1
    bins = (bins + _EPSILON) / (bins + _EPSILON).sum()
    wanted = np.interp(np.linspace(0, 1, len(bins)), np.linspace(0, 1, len(people)), people)
    return float(jensenshannon(bins, wanted))


def _within(word: tuple[float, float | None], begin: float, end: float) -> bool:
    """Return whether a word counts to a stretch of speech: it overlaps with it."""
    first, last = word
    if last is None:
        if first < end:
            return False
        last = first
    return (first >= begin and last <= end) or first <= end < last or first <= begin < last


def _awaited(item: SuiteItem) -> float:
    """Return the second from which an answer is waited for: the end of a turn or of an interruption."""
    task = TASKS[item.set]
    begin, end = item.fields[Path(ANNOTATIONS[task]).stem][0]["timestamp"]
    return end if task == INTERRUPTION else begin


def _stop_latency(outputs: Sequence[tuple[SuiteItem, Output]]) -> Metric:
    """Return the mean time that answers went on after an interruption had begun, of those that were being played."""
    found = []
    for item, output in outputs:
        began = item.fields["interrupt"][0]["timestamp"][0]
        for answer in (output.record or {}).get("answers", ()):
            parts = answer["stretches"]
            end = parts[-1]["begin"] + parts[-1]["length"] if parts else 0.0
            if parts and parts[0]["begin"] < began < end:
                found.append(end - began)
    note = "stop latency: seconds for which answers went on over an interruption; not a figure of the suite's version 1"
    return _mean(STOP, found, note=note if found else "open: no answer was playing at an interruption")


def _rate(name: str, turns: Sequence[bool], better: str) -> Metric:
    return _mean(name, [float(turn) for turn in turns], better)


def _mean(name: str, values: Sequence[float], better: str = "lower", note: str | None = None) -> Metric:
    if not values:
        return Metric(name, None, 0, note or NO_TURN, better)
    return Metric(name, float(np.mean(values)), len(values), note, better)


def _timestamps(output: Mapping[str, Any]) -> list[Sequence[float | None]]:
    return [chunk["timestamp"] for chunk in output["chunks"]]


def _filled(expression: ast.expr, names: Mapping[str, str]) -> str:
    """Return the text of a constant or of an f-string with plain names.

    Raises:
        ValueError: the expression is something else.
    """
    parts = expression.values if isinstance(expression, ast.JoinedStr) else [expression]
    found = []
    for part in parts:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.append(part.value)
        elif isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name) and part.value.id in names:
            found.append(names[part.value.id])
        else:
            raise ValueError("--suite_code: a prompt of eval_user_interruption.py has another form: another version")
    return "".join(found)


def _set_folder(source: Path, name: str) -> Path | None:
    """Return the folder of a set, which archives of the data set may hold once more under the same name."""
    return next((path for path in (source / name / name, source / name) if path.is_dir()), None)


def _number(path: Path) -> tuple[int, str]:
    return (int(path.name), "") if path.name.isdecimal() else (2**31, path.name)


def _item(name: str, folder: Path) -> SuiteItem | Remark:
    """Return a recording of a set, or why it cannot be used."""
    recording = Recording(f"{name}/{folder.name}", path=str(folder / INPUT))
    annotation, fields = ANNOTATIONS.get(TASKS[name]), {}
    if (folder / INPUT).is_file() and (problem := recording.check(None).problem) is not None:
        return Remark(problem, str(folder / INPUT))
    if annotation is not None:
        path = folder / annotation
        if not path.is_file():
            return Remark("missing", str(path))
        fields = {path.stem: _annotation(path)}
        if fields[path.stem] is None:
            return Remark("malformed", str(path))
    return SuiteItem(f"{name}/{folder.name}", name, "", fields=fields, audio=recording)


def _annotation(path: Path) -> list[dict[str, Any]] | None:
    """Return the annotated events of a recording; None if the file has another form."""
    try:
        found = json.loads(read_text(path))
        begin, end = found[0]["timestamp"]
        numbers = all(isinstance(second, int | float) for second in (begin, end))
        texts = path.name != ANNOTATIONS[INTERRUPTION] or all(
            isinstance(found[0][key], str) for key in ("context", "interrupt")
        )
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return found if numbers and texts else None
