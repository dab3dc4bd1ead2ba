"""The interface of a public suite of spoken questions: how it is read, scored, and written for its own scorers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omnikit.data.skipped import Remark
from omnikit.evaluate.suites.answering import StoredAnswer
from omnikit.evaluate.suites.items import SuiteItem
from omnikit.evaluate.suites.judges import JudgePrompt, LLMJudge, read_prompt
from omnikit.hub import hub_dataset, is_hub_id

NEEDS_JUDGE = "open: needs an LLM as judge (--judge_url, --judge_model)"
"""Note of a metric whose value is open because no judge was given."""
ALL = "all"
"""Name under which the figures over all sets of a suite stand."""


@dataclass(frozen=True)
class Metric:
    """One figure of a set of questions."""

    name: str
    """Name with its unit, such as `correct %`."""
    value: float | None
    """The figure; None = open, and `note` says why."""
    count: int
    """Number of questions that the figure is about."""
    note: str | None = None
    better: str = "higher"
    """Which values are better, `higher` or `lower`."""


@dataclass(frozen=True)
class Published:
    """A published figure, shown beside ours only if the protocol is the same."""

    system: str
    set: str
    metric: str
    task: str
    value: float
    count: int
    """Number of questions; the figure is shown if ours is about as many."""
    source: str
    protocol: Mapping[str, str] = field(default_factory=dict)
    """Entries of our protocol that have to be equal, such as `{"llm_judge": "gpt-4o-mini"}`."""


class Suite(ABC):
    """A public suite of spoken questions.

    Args:
        prompts: folder of the prompts for the judge, `<name>.txt`.
    """

    name: str
    """Name of the suite, as its recipe's folder is called."""
    layout: str
    """Published layout that `read` reads: a project or data set and its commit."""
    revision: str | None = None
    """Commit of the data set on the hub that `layout` names; None = its newest."""
    sets: tuple[str, ...] = ()
    """Names of all published sets."""
    published: tuple[Published, ...] = ()
    """Published figures of other systems."""
    partial_summary: bool = False
    """Whether `summary` itself decides which figures lack a set; otherwise all are open if any set is missing."""

    def __init__(self, prompts: Path | None = None):
        self.prompts = prompts

    @abstractmethod
    def read(self, source: Path) -> Iterable[SuiteItem | Remark]:
        """Yield the questions of a folder in the published layout; remarks count rows that cannot be used.

        Raises:
            ValueError: the folder has another layout; the message names the file and what is missing in it.
        """

    @abstractmethod
    def score(
        self, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer], judge: LLMJudge | None
    ) -> list[Metric]:
        """Return the figures of the answers to the questions of one set.

        Args:
            items: questions of one set.
            answers: answers by id, to all of `items`; `StoredAnswer.scored` is the text to be scored.
            judge: judge of free answers; None = metrics that need one are open, with the note `NEEDS_JUDGE`.
        """

    def summary(self, found: Mapping[str, Sequence[Metric]]) -> list[Metric]:
        """Return figures about the whole suite, computed from those of its sets (name -> figures); none by default.

        If a published set has no questions or was left out, their values become open, unless `partial_summary` says
        that they already are.
        """
        return []

    def protocol(self) -> dict[str, str]:
        """Return what else the figures depend on, such as the version of a text normaliser; nothing by default."""
        return {}

    @abstractmethod
    def write_official(self, folder: Path, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer]) -> None:
        """Write the answers by one task to a folder as the suite's own scorers read them.

        Args:
            folder: folder of its own for each task; it exists.
            items: questions of all sets that were asked.
            answers: answers by id.
        """

    def prompt(self, name: str) -> JudgePrompt:
        """Return a prompt for the judge by the name of its file.

        Raises:
            ValueError: there is no such file.
        """
        if self.prompts is None:
            raise ValueError(f"{self.name}: has no folder of prompts")
        return read_prompt(self.prompts / f"{name}.txt")

    def all_prompts(self) -> dict[str, JudgePrompt]:
        """Return all prompts for the judge by name, for the protocol of the results."""
        found = sorted(self.prompts.glob("*.txt")) if self.prompts is not None else []
        return {path.stem: read_prompt(path) for path in found}


def source_folder(source: str, revision: str | None = None) -> Path:
    """Return the local folder of a suite as published: a folder, or the files of a data set's hub id.

    Args:
        source: path of the folder, or hub id.
        revision: commit of the data set on the hub; None = its newest.

    Raises:
        ValueError: no such folder, or the hub cannot be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    if is_hub_id(source):
        return hub_dataset(source, revision)
    raise ValueError(f"--data_folder {source}: no such folder, and no hub id (owner/name)")


def mean_metric(name: str, metrics: Sequence[Metric], *, better: str = "higher") -> Metric:
    """Return the mean of metrics, each with the same weight; open if one of them is, or if there is none."""
    count = sum(metric.count for metric in metrics)
    values = [metric.value for metric in metrics]
    if not values or None in values:
        note = next((metric.note for metric in metrics if metric.value is None), "open: no set was scored")
        return Metric(name, None, count, note, better)
    return Metric(name, sum(values) / len(values), count, None, better)


def share(name: str, right: int, count: int, note: str | None = None, *, better: str = "higher") -> Metric:
    """Return a metric that is the percentage `right` of `count`; open if there is none."""
    if not count:
        return Metric(name, None, 0, "open: no question was answered", better)
    return Metric(name, 100 * right / count, count, note, better)
