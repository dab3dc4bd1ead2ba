"""The evaluation on Full-Duplex-Bench: simulated sessions, word times and figures.

    official/<set>/<name>/output.wav, output.json   what the system said, for the suite's own scorers
    official/<set>/<name>/session.json              questions, answers and interruptions of the simulated session
    run.json                                        what the outputs depend on
"""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from tqdm import tqdm

from omnikit import __version__
from omnikit.api import Omni, load
from omnikit.audio.io import load_audio, save_audio
from omnikit.audio.reader import Unusable
from omnikit.errors import one_line
from omnikit.evaluate.qa import some
from omnikit.evaluate.recipe_checks import check_evaluation
from omnikit.evaluate.simulated_session import (
    MEASURED,
    SimulatedDialog,
    SimulatedSession,
    SystemAnswering,
    check_generation,
)
from omnikit.evaluate.suites.answering import SPEECH_TO_SPEECH, StoredAnswer, as_stored
from omnikit.evaluate.suites.fullduplex import INTERRUPTION, OUTPUT, RECORD, TASKS, WORDS, FullDuplexBench
from omnikit.evaluate.suites.items import SuiteItem, chosen_sets, read_items
from omnikit.evaluate.suites.run import JUDGEMENTS, OFFICIAL, llm_judge
from omnikit.evaluate.suites.suite import Metric
from omnikit.evaluate.suites.tables import write_results
from omnikit.evaluate.word_times import (
    STORED,
    TEXT,
    Word,
    WordTimer,
    check_word_times,
    estimated_words,
    open_words,
    played_words,
    words_after,
)
from omnikit.files import make_folder, read_text, write_json
from omnikit.hparams import load_recipe
from omnikit.offline.batch_inference import RUN, checkpoint_stamp, read_about
from omnikit.option_ranges import NOT_NEGATIVE, PATH_OR_NONE, POSITIVE, Range, check_ranges
from omnikit.serve.realtime.actions import RATE
from omnikit.torchrun import Share

OUTPUT_RATE = 16000
"""Sample rate of `output.wav` in Hz, the one that the suite's script for backchannels takes it to have."""
RANGES = {
    "tail_seconds": NOT_NEGATIVE,
    "interrupt_min_ms": Range(0, 10_000),
    "max_audio_seconds": POSITIVE,
    "word_times_weights": PATH_OR_NONE,
    "suite_code": PATH_OR_NONE,
}
"""Mapping from the keys of the recipe that other evaluations do not have to the values that each of them accepts."""
_POLL = 0.5  # seconds between looks at the outputs of other processes


def check_duplex(tree: Mapping[str, Any]) -> None:
    """Check the keys and values of the recipe; for `omnikit.hparams.load_recipe`.

    Raises:
        ValueError: a value has the wrong type or is outside its range.
    """
    check_evaluation(tree)
    check_ranges(tree, RANGES)
    check_generation(tree["generation_seconds"])
    check_word_times(tree["word_times"])
    if not isinstance(tree["turn_detection"], Mapping | None):
        raise ValueError(f"--turn_detection {tree['turn_detection']}: must be a mapping, such as {{threshold: 0.6}}")


def evaluate(argv: Sequence[str] | None = None) -> None:
    """Evaluate the system that a command line and its recipe name; write and print the results.

    Args:
        argv: the arguments without the script's name; None = those of this process.

    Raises:
        ValueError: a file, flag, value or the data is unusable; the message is one line for the user.
    """
    recipe = load_recipe(None if argv is None else list(argv), check=check_duplex)
    text = DuplexRun(recipe.hparams, recipe.run_opts.get("device", "cpu")).run()
    if text is not None:
        print(text)


class DuplexRun:
    """One evaluation on Full-Duplex-Bench.

    Args:
        hparams: options of `recipes/FullDuplexBench/hparams/eval.yaml`.
        device: device of the system and of a recogniser.

    Raises:
        ValueError: an option or the data is unusable, or the folder has outputs of another run.
    """

    def __init__(self, hparams: Mapping[str, Any], device: str = "cpu"):
        self.hparams, self.device, self.share = hparams, device, Share.of_torchrun()
        self.folder = Path(hparams["output_folder"])
        code = hparams["suite_code"]
        self.suite = FullDuplexBench(None if code is None else Path(code))
        self.data = read_items(hparams["data_folder"], self.suite.name, self.suite.layout)
        names = chosen_sets(self.data.sets, hparams["sets"])
        self.sets = {name: some(self.data.of(name), hparams["limit"]) for name in names}
        self.items = [item for items in self.sets.values() for item in items]
        self.llm = llm_judge(hparams, self.folder / JUDGEMENTS)
        self.words: str = hparams["word_times"]
        self.about = self._checked_about()

    def run(self) -> str | None:
        """Simulate the sessions, find the words and score.

        Returns:
            The table of the results; None in the processes other than the first.

        Raises:
            ValueError: outputs are missing or unusable, or the LLM judge cannot be reached.
        """
        own = self.items[self.share.rank :: self.share.processes]
        if not self.hparams["rescore"]:
            make_folder(self.folder)
            if self.share.rank == 0:
                write_json(self.folder / RUN, self.about)
            self._simulate([item for item in own if not (self._place(item) / RECORD).is_file()])
        self._find_words([item for item in own if self._skipped(item) is None])
        if self.share.rank > 0:
            return None
        self._wait()
        scored = [item for item in self.items if self._skipped(item) is None]
        answers = {item.id: StoredAnswer("", self._place(item) / OUTPUT) for item in scored}
        self.suite.write_official(self.folder / OFFICIAL, scored, answers)
        found = {name: [item for item in items if item.id in answers] for name, items in self.sets.items()}
        results: dict[str, dict[str, list[Metric]]] = {
            name: {SPEECH_TO_SPEECH: self.suite.score(items, answers, self.llm)} for name, items in found.items()
        }
        return write_results(self.folder, self.suite, results, self._protocol(), self._remarks())

    def _checked_about(self) -> dict[str, Any]:
        """Return the settings that determine the outputs; re-scoring without a checkpoint takes those of the folder."""
        keys = ("generation_seconds", "turn_detection", "interrupt_min_ms", "max_audio_seconds", "tail_seconds")
        questions = {"suite": self.suite.name, "layout": self.suite.layout, "questions": self.data.about["digest"]}
        about = {**questions, **checkpoint_stamp(self.hparams["checkpoint"])}
        about |= {key: self.hparams[key] for key in keys} | {"decoding": str(self.hparams["decoding"])}
        about = as_stored({**about, "strategy": type(self.hparams["strategy"]).__name__})
        there = read_about(self.folder, "--output_folder")
        if self.hparams["rescore"]:
            if there is None:
                raise ValueError(f"--rescore: no outputs are stored in {self.folder}; run without it first")
            about = {**there, **questions} if self.hparams["checkpoint"] is None else about
        kept = about if there is None else there
        other = [f"{key} was {kept.get(key)}, is {now}" for key, now in about.items() if kept.get(key) != now]
        if other:
            raise ValueError(f"--output_folder {self.folder}: holds outputs of another run ({'; '.join(other)})")
        return about

    # simulated sessions

    def _simulate(self, items: Sequence[SuiteItem]) -> None:
        """Hold the sessions with some recordings, several at a time unless the time of generation is measured."""
        if not items:
            return
        together = 1 if self.hparams["generation_seconds"] == MEASURED else self.hparams["batch_size"]
        strategy, first = self.hparams["strategy"], load(self.hparams["checkpoint"], device=self.device)
        omni = Omni(
            first.model, decoding=self.hparams["decoding"], strategy=strategy, engine=first.decoder.engine,
            capacity=together * len(strategy.text_only),
        )  # fmt: skip
        if self.hparams["generation_seconds"] == MEASURED:
            omni.ask(torch.zeros(omni.model.encoder.sample_rate))  # for warming up
        with ThreadPoolExecutor(together) as pool:
            try:
                found = [pool.submit(self._session, omni, item) for item in items]
                for each in tqdm(found, desc="sessions", dynamic_ncols=True, disable=self.share.rank > 0):
                    each.result()
            except BaseException:  # Ctrl-C among them
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                omni.close()

    def _session(self, omni: Omni, item: SuiteItem) -> None:
        """Hold the session with one recording, and write what was said; its record is written last."""
        place = self._place(item)
        make_folder(place)
        try:
            samples = item.audio.load(RATE).numpy()
        except Unusable as error:
            write_json(place / RECORD, {"skipped": error.reason})
            return
        answering = SystemAnswering(omni, self.hparams["generation_seconds"], seed=zlib.crc32(item.id.encode()))
        session = SimulatedSession(
            answering, turn_detection=self.hparams["turn_detection"],
            interrupt_min_ms=self.hparams["interrupt_min_ms"], max_audio_seconds=self.hparams["max_audio_seconds"],
        )  # fmt: skip
        dialog = session.run(samples, self.hparams["tail_seconds"])
        save_audio(place / OUTPUT, torch.from_numpy(output_samples(dialog)), OUTPUT_RATE)
        write_json(place / RECORD, record(dialog, omni.sample_rate))

    # word times

    def _find_words(self, items: Sequence[SuiteItem]) -> None:
        """Write `output.json` with the word times of some outputs; with `--word_times stored` it is there already."""
        if self.words == STORED:
            return
        for item in tqdm(items, desc="words", dynamic_ncols=True, disable=self.share.rank > 0):
            place = self._place(item)
            if self.words == TEXT:
                spoken = [Word(each["text"], *each["timestamp"]) for each in _read(place / RECORD)["chunks"]]
                found = chunks(words_after(spoken, _heard_from(item)))
            else:
                found = self._recognised(item)
            write_json(place / WORDS, found)

    def _recognised(self, item: SuiteItem) -> dict[str, Any]:
        """Return the words of an output with their times: those stored, or else a recogniser's, which are stored."""
        place, after = self._place(item), _heard_from(item)
        path = place / self._words_file()
        if not path.is_file():
            wav = load_audio(place / OUTPUT, OUTPUT_RATE, max_seconds=None).numpy()
            found = self._timer.words(wav[int(after * OUTPUT_RATE) :], OUTPUT_RATE)
            write_json(path, chunks([Word(w.text, w.begin + after, w.end + after) for w in found]))
        return _read(path)

    @cached_property
    def _timer(self) -> WordTimer:
        return open_words(self.words, self.hparams["word_times_weights"], self.device)

    def _words_file(self) -> str:
        """Return the name of the file with the words of a recogniser; the suite's scripts look for `..output.json`."""
        weights = self.hparams["word_times_weights"]
        mark = "" if weights is None else f"-{zlib.crc32(str(Path(weights).resolve()).encode()):08x}"
        return f"words.{self.words}{mark}.json"

    # figures

    def _place(self, item: SuiteItem) -> Path:
        return self.folder / OFFICIAL / item.id

    def _skipped(self, item: SuiteItem) -> str | None:
        """Return why a recording has no output; None if it has one.

        Raises:
            ValueError: it has neither.
        """
        place = self._place(item)
        if not (place / RECORD).is_file():
            raise ValueError(f"{place}: has no {OUTPUT}; the same command without --rescore goes on")
        return _read(place / RECORD).get("skipped")

    def _wait(self) -> None:
        """Wait until all processes have written their outputs; torchrun ends all of them if one fails."""

        def missing(item: SuiteItem) -> bool:
            place = self._place(item)
            return not (place / RECORD).is_file() or (self._skipped(item) is None and not (place / WORDS).is_file())

        while self.share.processes > 1 and any(map(missing, self.items)):
            time.sleep(_POLL)

    def _protocol(self) -> dict[str, Any]:
        own = {key: value for key, value in self.about.items() if key not in ("suite", "written")}
        weights = self.hparams["word_times_weights"]
        return {
            **own,
            "omnikit": __version__,
            "checkpoint": own["checkpoint"] or "the shipped mini system",
            "word_times": self.words if weights is None else f"{self.words} {weights}",
            "llm_judge": None if self.llm is None else self.llm.model,
        }

    def _remarks(self) -> list[str]:
        reasons = Counter(reason for item in self.items if (reason := self._skipped(item)) is not None)
        found = [f"{count} recordings without an output ({reason})" for reason, count in reasons.items()]
        records = (_read(self._place(item) / RECORD) for item in self.items)
        problems = Counter(words for each in records for words in each.get("problems", ()))
        found += [f"{count} errors in sessions: {words}" for words, count in problems.items()]
        if skipped := self.data.about["skipped"]:
            found.append(f"skipped when the suite was prepared: {skipped}")
        if missing := [name for name in self.suite.sets if name not in self.sets]:
            found.append(f"sets left out: {', '.join(missing)}")
        return found + ([f"at most {self.hparams['limit']} recordings of each set"] if self.hparams["limit"] else [])


def output_samples(dialog: SimulatedDialog) -> np.ndarray:
    """Return what was played in a simulated session as samples [n] (float32, at `OUTPUT_RATE`)."""
    wanted = round(len(dialog.output) * OUTPUT_RATE / RATE)
    samples = soxr.resample(dialog.output.astype(np.float32) / 2**15, RATE, OUTPUT_RATE)[:wanted]
    return np.pad(samples, (0, wanted - len(samples)))


def record(dialog: SimulatedDialog, sample_rate: int) -> dict[str, Any]:
    """Return what happened in a simulated session, and the estimated times of the words that were played.

    Args:
        dialog: the session.
        sample_rate: sample rate of the answers in Hz.
    """
    answers, words = [], []
    for played in dialog.answers:
        text = played.answer.text
        own = played_words(estimated_words(text, played.answer.samples, sample_rate), played.stretches)
        words += own
        stretches = [{key: round(second, 4) for key, second in asdict(each).items()} for each in played.stretches]
        answers.append(
            {
                "asked": round(played.asked, 3), "text": text, "end": played.answer.end, "stretches": stretches,
                "stopped": None if played.stopped is None else round(played.stopped, 3),
                "played_text": " ".join(word.text for word in own),
            }
        )  # fmt: skip
    problems = [one_line(words) for words in dialog.problems]
    return {"answers": answers, **chunks(words), "problems": problems}


def chunks(words: Sequence[Word]) -> dict[str, Any]:
    """Return words as the suite stores them, in the form of `output.json`."""
    found = [{"text": word.text, "timestamp": [round(word.begin, 4), round(word.end, 4)]} for word in words]
    return {"text": " ".join(word.text for word in words), "chunks": found}


def _heard_from(item: SuiteItem) -> float:
    """Return the second from which words count: the end of the interruption, or 0 in sets without one."""
    return item.fields["interrupt"][0]["timestamp"][1] if TASKS[item.set] == INTERRUPTION else 0.0


def _read(path: Path) -> dict[str, Any]:
    return json.loads(read_text(path))
