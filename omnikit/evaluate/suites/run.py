"""The commands of all `recipes/<Suite>`: preparing a suite, and evaluating a system or a baseline on it."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omnikit import __version__
from omnikit.errors import ArgumentParser
from omnikit.evaluate.intelligibility import POCKETSPHINX, check_judge, open_judge
from omnikit.evaluate.mos import check_mos, open_mos
from omnikit.evaluate.recipe_checks import check_evaluation
from omnikit.evaluate.suites.answering import (
    ANSWERS,
    ASKED,
    Candidate,
    StoredAnswer,
    answer,
    as_stored,
    asked,
    stored_about,
    stored_answers,
    system,
    wait_for_answers,
)
from omnikit.evaluate.suites.cascade import cascade
from omnikit.evaluate.suites.items import SuiteItem, chosen_sets, read_items, some_items, write_items
from omnikit.evaluate.suites.judges import LLMJudge
from omnikit.evaluate.suites.spoken_answers import naturalness, speech_metrics, to_versa, truncation, versa_metrics
from omnikit.evaluate.suites.stored_outputs import Measure, StoredOutputs
from omnikit.evaluate.suites.suite import ALL, Metric, Suite, source_folder
from omnikit.evaluate.suites.tables import write_results
from omnikit.evaluate.text_normalisation import normalizer, normalizer_version
from omnikit.evaluate.versa import read_versa, versa_key, write_versa
from omnikit.files import make_folder, whole_text
from omnikit.hparams import load_recipe
from omnikit.tasks import TASKS
from omnikit.torchrun import Share

TRANSCRIPTS, NATURALNESS = "transcripts", "mos"
"""Kinds of stored outputs about spoken answers, which are the beginnings of their files' names."""
JUDGEMENTS = "judgements.jsonl"
"""Name of the file with the judgements of an LLM in an output folder."""
OFFICIAL = "official"
"""Name of the folder with the files for a suite's own scorers in an output folder."""
VERSA = "versa"
"""Name of the folder with the input of VERSA, which has many metrics of speech, in an output folder."""
SAME = ("suite", "layout", "questions")
"""Keys of `run.json` that say which questions were answered, and have to fit those at hand."""


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
    source = source_folder(options.data_folder, suite.revision)
    items = write_items(Path(options.save_folder), suite.name, suite.layout, suite.read(source))
    counts = _counts(items.about["sets"])
    skipped = _counts(items.about["skipped"])
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
        ValueError: there is no such checkpoint or baseline.
    """
    return system(hparams, device) if hparams["baseline"] is None else cascade(hparams, device)


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
        self.suite, self.hparams, self.candidate = suite, hparams, found
        self.folder = Path(hparams["output_folder"])
        self.tasks = _tasks(hparams["tasks"])
        if not isinstance(hparams["rescore"], bool):
            raise ValueError(f"--rescore {hparams['rescore']}: must be true or false")
        self.data = read_items(hparams["data_folder"], suite.name, suite.layout)
        names = chosen_sets(self.data.sets, hparams["sets"])
        self.sets = {name: some_items(self.data.of(name), hparams["limit"]) for name in names}
        self.items = [item for items in self.sets.values() for item in items]
        self.normalize = normalizer(hparams["judge_normalizer"])
        self.llm = llm_judge(hparams, self.folder / JUDGEMENTS)
        self.listeners = listeners(hparams, device)
        self.answerer = functools.cache(found.open)
        self.versa = {} if hparams["versa"] is None else read_versa(Path(hparams["versa"]))

    def run(self) -> str | None:
        """Answer, transcribe and score; see `evaluate_suite`."""
        about = {task: self._answered(task) for task in self.tasks}
        self._check_one_candidate(about)
        for task in self.tasks:
            wait_for_answers(task, self.items, self._folder(task))
        listened = {task: self._listened(task) for task in self.tasks}
        if Share.of_torchrun().rank > 0:
            return None
        answers, without, scores = {}, {}, {}
        for task in self.tasks:
            outputs = {kind: stored.wait(self._asked(task)) for kind, stored in listened[task].items()}
            heard, scores[task] = outputs.get(TRANSCRIPTS), outputs.get(NATURALNESS)
            answers[task], without[task] = stored_answers(task, self.items, self._folder(task), heard)
            self._write_answers(task, answers[task])
        self._check_versa(answers)
        results = self._scored(answers, scores)
        protocol = self._protocol(about[self.tasks[0]])
        return write_results(self.folder, self.suite, results, protocol, self._remarks(without))

    def _folder(self, task: str) -> Path:
        return self.folder / ANSWERS / task

    def _asked(self, task: str) -> list[SuiteItem]:
        return asked(task, self.items)

    def _answered(self, task: str) -> dict[str, Any]:
        """Answer the questions by one task unless answers are only re-scored; return what the answers depend on."""
        questions = {"suite": self.suite.name, "layout": self.suite.layout, "questions": self.data.about["digest"]}
        if not self.hparams["rescore"]:
            return answer(
                task, self.data.manifest, self.items, self._folder(task), self.answerer,
                batch_size=self.hparams["batch_size"], about={**self.candidate.about, **questions},
            )  # fmt: skip
        about = stored_about(self._folder(task))
        wanted = questions | ({} if self._any_candidate() else as_stored(self.candidate.about))
        other = [f"{key} was {about.get(key)}, is {value}" for key, value in wanted.items() if about.get(key) != value]
        if other:
            raise ValueError(f"--output_folder {self._folder(task)}: holds answers of another run ({'; '.join(other)})")
        return about

    def _any_candidate(self) -> bool:
        """Return whether the command names nothing to evaluate, so that answers are re-scored whoever gave them."""
        return self.hparams["checkpoint"] is None and self.hparams["baseline"] is None

    def _check_one_candidate(self, about: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse stored answers of different systems, whose difference would be no modality gap."""
        first = self.tasks[0]
        for task, found in about.items():
            own = {key: found.get(key) for key in (*found, *about[first]) if key not in ("task", "source")}
            other = [key for key, value in own.items() if about[first].get(key) != value]
            if other:
                raise ValueError(
                    f"--output_folder {self.folder}: answers of {first} and {task} are of different runs "
                    f"({other[0]} is {about[first].get(other[0])} and {own[other[0]]})"
                )

    def _listened(self, task: str) -> dict[str, StoredOutputs]:
        """Transcribe and rate this process's share of the spoken answers of a task; nothing for written ones."""
        found = {}
        for kind, (name, opened) in self.listeners.items() if TASKS[task].speaks else ():
            found[kind] = StoredOutputs(self._folder(task), kind, name)
            found[kind].make(opened, self._asked(task))
        return found

    def _write_answers(self, task: str, answers: Mapping[str, StoredAnswer]) -> None:
        """Write the answers as lines of JSON for people to read, and as the suite's own scorers read them."""
        answered = [item for item in self.items if item.id in answers]
        with whole_text(self.folder / f"answers_{task}.jsonl") as file:
            for item in answered:
                given = answers[item.id]
                line = {"id": item.id, "question": item.question, "references": list(item.references)}
                line |= {"answer": given.text, "heard": given.heard, "truncated": given.truncated}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        folder = self.folder / OFFICIAL / task
        make_folder(folder)
        self.suite.write_official(folder, answered, answers)
        if TASKS[task].speaks:
            write_versa(self.folder / VERSA / task, to_versa(answers))

    def _check_versa(self, answers: Mapping[str, Mapping[str, StoredAnswer]]) -> None:
        """Refuse results of VERSA that are about none of the spoken answers, such as those of another suite."""
        keys = {versa_key(name) for task, given in answers.items() if TASKS[task].speaks for name in given}
        if self.versa and not keys & self.versa.keys():
            example = next(iter(self.versa))
            raise ValueError(f"--versa {self.hparams['versa']}: has no spoken answer of this run, but {example}")

    def _scored(
        self, answers: Mapping[str, Mapping[str, StoredAnswer]], scores: Mapping[str, Mapping[str, float] | None]
    ) -> dict[str, dict[str, list[Metric]]]:
        """Return the figures by set and task; those over all sets come first."""
        results: dict[str, dict[str, list[Metric]]] = {ALL: {}, **{name: {} for name in self.sets}}
        for task in self.tasks:
            for name, items in self.sets.items():
                answered = [item for item in items if item.id in answers[task]]
                own = list(self.suite.score(answered, {item.id: answers[task][item.id] for item in answered}, self.llm))
                results[name][task] = own + self._of_every_suite(task, answered, answers[task], scores[task])
            summary = self._summary({name: results[name][task] for name in self.sets})
            answered = [item for item in self.items if item.id in answers[task]]
            results[ALL][task] = summary + self._of_every_suite(task, answered, answers[task], scores[task])
        return results

    def _summary(self, found: Mapping[str, Sequence[Metric]]) -> list[Metric]:
        """Return the suite's figures over all sets; they are open if one of the published sets is not among them."""
        missing = [name for name in self.suite.sets if name not in found and not self.suite.partial_summary]
        note = f"open: without {', '.join(missing)}"
        return [replace(each, value=None, note=note) if missing else each for each in self.suite.summary(found)]

    def _of_every_suite(
        self,
        task: str,
        items: Sequence[SuiteItem],
        answers: Mapping[str, StoredAnswer],
        scores: Mapping[str, float] | None,
    ) -> list[Metric]:
        """Return the figures that do not depend on the suite: of truncation and of speech."""
        speech = speech_metrics(items, answers, self.normalize) if TASKS[task].speaks else []
        speech += [naturalness(items, scores)] if scores is not None else []
        speech += versa_metrics(items, self.versa) if TASKS[task].speaks else []
        return [*speech, truncation({item.id: answers[item.id] for item in items})]

    def _protocol(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the figures depend on."""
        own = {key: value for key, value in about.items() if key not in (*SAME, "task", "source")}
        own |= {"checkpoint": own["checkpoint"] or "the shipped mini system"} if "checkpoint" in own else {}
        prompts = self.suite.all_prompts() if self.llm is not None else {}
        return {
            "omnikit": __version__,
            "layout": self.suite.layout,
            "questions": self.data.about["digest"],
            **own,
            "recogniser": self.listeners[TRANSCRIPTS][0] if TRANSCRIPTS in self.listeners else None,
            "judge_normalizer": normalizer_version(self.hparams["judge_normalizer"]),
            **({"versa": self.hparams["versa"]} if self.versa else {}),
            "llm_judge": None if self.llm is None else self.llm.model,
            "prompts": {name: prompt.digest for name, prompt in prompts.items()},
            **self.suite.protocol(),
        }

    def _remarks(self, without: Mapping[str, Mapping[str, str]]) -> list[str]:
        """Return what the figures leave out."""
        found = []
        for task, reasons in without.items():
            counts = Counter(reasons.values())
            found += [f"{task}: {count} questions without an answer ({reason})" for reason, count in counts.items()]
        skipped = self.data.about["skipped"]
        found += [f"skipped when the suite was prepared: {_counts(skipped)}"] if skipped else []
        missing = [name for name in self.suite.sets if name not in self.data.sets]
        found += [f"sets that the data lacks: {', '.join(missing)}"] if missing else []
        left = [name for name in self.data.sets if name not in self.sets]
        found += [f"sets left out: {', '.join(left)}"] if left else []
        unheard = [task for task in self.tasks if TASKS[task].speaks and TRANSCRIPTS not in self.listeners]
        found += [f"{task}: figures of the generated text; --judge scores what a recogniser hears" for task in unheard]
        return found + ([f"at most {self.hparams['limit']} questions of each set"] if self.hparams["limit"] else [])


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in found.items()) or "none"


def listeners(hparams: Mapping[str, Any], device: str) -> dict[str, tuple[str, Callable[[], Measure]]]:
    """Return what listens to spoken answers, by kind of output: its name, and a function that loads it.

    Raises:
        ValueError: a name is unknown.
    """
    found = {}
    judge, grammar, weights = hparams["judge"], hparams["grammar_file"], hparams["judge_weights"]
    if judge != POCKETSPHINX or grammar is not None:
        check_judge(judge, grammar)
        name = " ".join(str(each) for each in (judge, grammar, weights) if each is not None)

        def recogniser() -> Measure:
            return open_judge(judge, grammar, weights, device).transcribe

        found[TRANSCRIPTS] = (name, recogniser)
    if hparams["mos"] is not None:
        check_mos(hparams["mos"])

        def rater() -> Measure:
            opened = open_mos(hparams["mos"], hparams["mos_source"], device)
            return lambda wav, rate, language: opened.score(wav, rate)

        found[NATURALNESS] = (hparams["mos"], rater)
    return found


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
    key = os.environ[variable] if variable else None
    return LLMJudge(url, model or "", cache_file, key=key, threads=hparams["judge_threads"])


def _tasks(tasks: Any) -> list[str]:
    unknown = [task for task in tasks if task not in ASKED] if isinstance(tasks, list) else [tasks]
    if unknown or not tasks:
        raise ValueError(f"--tasks {', '.join(map(str, unknown)) or '[]'}: must be a list, of {', '.join(ASKED)}")
    return [task for task in ASKED if task in tasks]
