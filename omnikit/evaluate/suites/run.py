"""The commands of all `recipes/<Suite>`: preparing a suite, and evaluating a system or a baseline on it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnikit.errors import ArgumentParser
from omnikit.evaluate.intelligibility import open_judge
from omnikit.evaluate.qa import some
from omnikit.evaluate.recipe_checks import check_evaluation
from omnikit.evaluate.suites.answering import (
    ANSWERS,
    ASKED,
    Candidate,
    StoredAnswer,
    Transcripts,
    answer,
    asked,
    stored_about,
    stored_answers,
    system,
    wait_for_answers,
)
from omnikit.evaluate.suites.items import SuiteItem, chosen_sets, read_items, write_items
from omnikit.evaluate.suites.judges import LLMJudge
from omnikit.evaluate.suites.spoken_answers import speech_metrics, truncation
from omnikit.evaluate.suites.suite import ALL, Metric, Suite, source_folder
from omnikit.evaluate.suites.tables import write_results
from omnikit.evaluate.text_normalisation import normalizer, normalizer_version
from omnikit.files import make_folder
from omnikit.hparams import load_recipe
from omnikit.tasks import TASKS
from omnikit.torchrun import Share

JUDGEMENTS = "judgements.jsonl"
"""Name of the file with the judgements of an LLM in an output folder."""
OFFICIAL = "official"
"""Name of the folder with the files for a suite's own scorers in an output folder."""
SAME = ("suite", "layout", "questions")
"""Entries of stored answers that have to fit the questions at hand."""


def prepare(suite: Suite, doc: str) -> None:
    """Prepare a suite with the options of this process's command line: `--data_folder`, `--save_folder`.

    Args:
        suite: the suite.
        doc: text of `--help`.

    Raises:
        ValueError: the folder has another layout, or an option is bad; the message is one line.
    """
    parser = ArgumentParser(description=doc)
    parser.add_argument("--data_folder", required=True, help="folder in the published layout, or hub id of the data")
    parser.add_argument("--save_folder", required=True, help="folder of the prepared suite, for evaluate.py")
    options = parser.parse_args()
    source = source_folder(options.data_folder)
    items = write_items(Path(options.save_folder), suite.name, suite.layout, suite.read(source))
    counts = ", ".join(f"{name} {count}" for name, count in items.about["sets"].items())
    skipped = items.about["skipped"] or "none"
    print(f"{options.save_folder}: {len(items.items)} questions ({counts}); skipped: {skipped}")
    if missing := [name for name in suite.sets if name not in items.sets]:
        print(f"{options.save_folder}: no questions of {', '.join(missing)}, which the published suite has")


def evaluate(suite: Suite, argv: Sequence[str] | None = None) -> None:
    """Evaluate what a command line and its recipe name on a suite; write and print the results.

    Args:
        suite: the suite.
        argv: the arguments without the script's name; None = those of this process.

    Raises:
        ValueError: a file, flag, value or the data is unusable; the message is one line for the user.
    """
    recipe = load_recipe(None if argv is None else list(argv), check=check_evaluation)
    device = recipe.run_opts.get("device", "cpu")
    text = evaluate_suite(suite, recipe.hparams, candidate(recipe.hparams, device), device)
    if text is not None:
        print(text)


def candidate(hparams: Mapping[str, Any], device: str) -> Candidate:
    """Return the system that a recipe names, or the baseline.

    Raises:
        ValueError: there is no such checkpoint.
    """
    return system(hparams, device)


def evaluate_suite(suite: Suite, hparams: Mapping[str, Any], found: Candidate, device: str = "cpu") -> str | None:
    """Answer the questions of a suite by each task, score the stored answers, and write the results.

    Args:
        suite: the suite.
        hparams: options, those of `hparams/suite.yaml`.
        found: what is evaluated.
        device: device of a recogniser that transcribes spoken answers.

    Returns:
        The table of the results; None in the processes other than the first, which only answer and transcribe.

    Raises:
        ValueError: the data, the stored answers or an option is unusable, or the LLM judge cannot be reached.
    """
    return SuiteRun(suite, hparams, found, device).run()


class SuiteRun:
    """One evaluation on a suite; see `evaluate_suite`."""

    def __init__(self, suite: Suite, hparams: Mapping[str, Any], found: Candidate, device: str):
        self.suite, self.hparams, self.candidate, self.device = suite, hparams, found, device
        self.folder = Path(hparams["output_folder"])
        self.tasks = _tasks(hparams["tasks"])
        self.data = read_items(hparams["data_folder"], suite.name, suite.layout)
        self.sets = {name: some(self.data.of(name), hparams["limit"]) for name in self._set_names()}
        self.items = [item for items in self.sets.values() for item in items]
        self.normalize = normalizer(hparams["judge_normalizer"])
        self.llm = llm_judge(hparams, self.folder / JUDGEMENTS)
        self.recogniser = _Recogniser(hparams, device)
        self.answerer = functools.cache(found.open)

    def _set_names(self) -> list[str]:
        return chosen_sets(self.data.sets, self.hparams["sets"])

    def run(self) -> str | None:
        """Answer, transcribe and score; see `evaluate_suite`."""
        about = {task: self._answered(task) for task in self.tasks}
        for task in self.tasks:
            wait_for_answers(task, self.items, self._folder(task))
        transcripts = {task: self._transcribed(task) for task in self.tasks}
        if Share.of_torchrun().rank > 0:
            return None
        self._check_one_candidate(about)
        answers, without = {}, {}
        for task in self.tasks:
            heard = transcripts[task].wait(self._ids(task)) if transcripts[task] is not None else None
            answers[task], without[task] = stored_answers(task, self.items, self._folder(task), heard)
            self._write_official(task, answers[task])
        results = self._scored(answers)
        return write_results(
            self.folder, self.suite, results, self._protocol(next(iter(about.values()))), self._remarks(without)
        )

    def _folder(self, task: str) -> Path:
        return self.folder / ANSWERS / task

    def _ids(self, task: str) -> list[str]:
        return [item.id for item in asked(task, self.items)]

    def _answered(self, task: str) -> dict[str, Any]:
        """Answer the questions by one task unless answers are only re-scored; return what the answers depend on."""
        questions = {"suite": self.suite.name, "layout": self.suite.layout, "questions": self.data.about["digest"]}
        if not self.hparams["rescore"]:
            about = {**self.candidate.about, **questions, "max_steps": self.hparams["decoding"].max_steps}
            return answer(
                task, self.data.manifest, self.items, self._folder(task), self.answerer,
                batch_size=self.hparams["batch_size"], about=about,
            )  # fmt: skip
        about = stored_about(self._folder(task))
        wanted = questions if self._any_candidate() else {**self.candidate.about, **questions}
        other = [f"{key} was {about.get(key)}, is {value}" for key, value in wanted.items() if about.get(key) != value]
        if other:
            raise ValueError(f"--output_folder {self._folder(task)}: holds answers of another run ({'; '.join(other)})")
        return about

    def _any_candidate(self) -> bool:
        """Return whether the command names nothing to evaluate, so that answers are re-scored whoever gave them."""
        return self.hparams["checkpoint"] is None

    def _check_one_candidate(self, about: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse stored answers of different systems, whose difference would be no modality gap."""
        first = next(iter(about))
        for task, found in about.items():
            keys = [key for key in ("checkpoint", "written", "baseline") if found.get(key) != about[first].get(key)]
            if keys:
                raise ValueError(
                    f"--output_folder {self.folder}: answers of {first} and {task} have another {keys[0]} "
                    f"({about[first].get(keys[0])}, {found.get(keys[0])})"
                )

    def _transcribed(self, task: str) -> Transcripts | None:
        """Transcribe this process's share of the spoken answers of a task; None without a recogniser or speech."""
        if not TASKS[task].speaks or self.recogniser.name is None:
            return None
        found = Transcripts(self._folder(task), self.recogniser.name)
        found.make(self.recogniser.open, self._ids(task))
        return found

    def _write_official(self, task: str, answers: Mapping[str, StoredAnswer]) -> None:
        folder = self.folder / OFFICIAL / task
        make_folder(folder)
        self.suite.write_official(folder, [item for item in self.items if item.id in answers], answers)

    def _scored(self, answers: Mapping[str, Mapping[str, StoredAnswer]]) -> dict[str, dict[str, list[Metric]]]:
        results: dict[str, dict[str, list[Metric]]] = {name: {} for name in self.sets}
        for name, items in self.sets.items():
            for task in self.tasks:
                results[name][task] = self._metrics(task, items, answers[task])
        whole = {
            task: self.suite.summary({name: by_task[task] for name, by_task in results.items()}) for task in self.tasks
        }
        return ({ALL: whole} if any(whole.values()) else {}) | results

    def _metrics(self, task: str, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer]) -> list[Metric]:
        answered = [item for item in items if item.id in answers]
        given = {item.id: answers[item.id] for item in answered}
        found = list(self.suite.score(answered, given, self.llm))
        found += speech_metrics(given, self.normalize) if TASKS[task].speaks else []
        return [*found, truncation(given)]

    def _protocol(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the figures depend on."""
        own = {key: value for key, value in about.items() if key not in (*SAME, "task", "source")}
        own["checkpoint"] = own.get("checkpoint") or ("the shipped mini system" if "baseline" not in own else None)
        prompts = {name: prompt.digest for name, prompt in self.suite.all_prompts().items()}
        return {
            "layout": self.suite.layout,
            "questions": self.data.about["digest"],
            **own,
            "recogniser": self.recogniser.name,
            "judge_normalizer": normalizer_version(self.hparams["judge_normalizer"]),
            "llm_judge": None if self.llm is None else self.llm.model,
            "prompts": prompts if self.llm is not None else {},
            **self.suite.protocol(),
        }

    def _remarks(self, without: Mapping[str, Mapping[str, str]]) -> list[str]:
        found = []
        for task, reasons in without.items():
            counts = {reason: list(reasons.values()).count(reason) for reason in dict.fromkeys(reasons.values())}
            found += [f"{task}: {count} questions not asked ({reason})" for reason, count in counts.items()]
        skipped = self.data.about["skipped"]
        found += [f"skipped when the suite was prepared: {skipped}"] if skipped else []
        missing = [name for name in self.suite.sets if name not in self.data.sets]
        found += [f"sets that are not in the data: {', '.join(missing)}"] if missing else []
        left = [name for name in self.data.sets if name not in self.sets]
        found += [f"sets left out: {', '.join(left)}"] if left else []
        found += [f"at most {self.hparams['limit']} questions of each set"] if self.hparams["limit"] else []
        return found


class _Recogniser:
    """The recogniser that transcribes spoken answers, opened when it is first needed."""

    def __init__(self, hparams: Mapping[str, Any], device: str):
        self.options = {"judge": hparams["judge"], "grammar_file": hparams["grammar_file"]}
        self.options |= {"weights": hparams["judge_weights"], "device": device}
        used = [str(self.options[key]) for key in ("judge", "grammar_file", "weights") if self.options[key] is not None]
        silent = hparams["judge"] == "pocketsphinx" and hparams["grammar_file"] is None
        self.name = None if silent else " ".join(used)
        """Name with grammar and weights; None = spoken answers are not transcribed."""

    def open(self) -> Any:
        return open_judge(**self.options)


def llm_judge(hparams: Mapping[str, Any], cache_file: Path) -> LLMJudge | None:
    """Return the LLM that a recipe names as judge; None if it names no address.

    Raises:
        ValueError: the address or the model's name is missing or bad, or the named environment variable is not set.
    """
    url, model, variable = hparams["judge_url"], hparams["judge_model"], hparams["judge_key"]
    if url is None:
        if model is not None:
            raise ValueError(f"--judge_model {model}: --judge_url is missing, the address of the server")
        return None
    if variable is not None and variable not in os.environ:
        raise ValueError(f"--judge_key {variable}: no such environment variable")
    return LLMJudge(url, model or "", cache_file, key=os.environ[variable] if variable else None)


def _tasks(tasks: Any) -> list[str]:
    unknown = [task for task in tasks if task not in ASKED] if isinstance(tasks, list) else [tasks]
    if unknown or not tasks:
        raise ValueError(f"--tasks {', '.join(map(str, unknown)) or '[]'}: must be a list, of {', '.join(ASKED)}")
    return [task for task in ASKED if task in tasks]


