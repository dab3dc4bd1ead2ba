"""Results of a suite as one table for people and one JSON file for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omnikit.evaluate.result_tables import MISSING, markdown_table
from omnikit.evaluate.suites.answering import ASKED, SPEECH_TO_SPEECH, SPEECH_TO_TEXT, TEXT_TO_TEXT
from omnikit.evaluate.suites.suite import Metric, Published, Suite
from omnikit.files import write_json, write_text

OPEN = "open"
HEARING, SPEAKING = "gap of hearing", "gap of speaking"
GAPS = {HEARING: (TEXT_TO_TEXT, SPEECH_TO_TEXT), SPEAKING: (SPEECH_TO_TEXT, SPEECH_TO_SPEECH)}
"""Mapping from the name of a modality gap to the two tasks whose figures are subtracted."""
Results = Mapping[str, Mapping[str, Sequence[Metric]]]
"""Mapping from set and task to figures."""


def gap(before: Metric | None, after: Metric | None) -> float | None:
    """Return the points that a step costs: positive if the figure after it is worse.

    It is None if one of the figures is open, or if they are about different numbers of questions.
    """
    if before is None or after is None or before.value is None or after.value is None or before.count != after.count:
        return None
    return before.value - after.value if before.better == "higher" else after.value - before.value


def fitting(published: Published, results: Results, protocol: Mapping[str, Any]) -> bool:
    """Return whether a published figure may stand beside ours: same number of questions and same protocol."""
    ours = _named(results.get(published.set, {}).get(published.task, ()), published.metric)
    same = all(str(protocol.get(key)) == value for key, value in published.protocol.items())
    return ours is not None and ours.value is not None and ours.count == published.count and same


def table(results: Results, published: Sequence[Published] = ()) -> str:
    """Return figures as a Markdown table with a line for each set and metric, and the published ones that fit."""
    tasks = [task for task in ASKED if any(task in by_task for by_task in results.values())]
    gaps = {name: ends for name, ends in GAPS.items() if set(ends) <= set(tasks)}
    systems = list(dict.fromkeys(f"{each.system}, {each.task}" for each in published))
    rows = []
    for name, by_task in results.items():
        for metric in dict.fromkeys(each.name for task in tasks for each in by_task.get(task, ())):
            found = {task: _named(by_task.get(task, ()), metric) for task in tasks}
            shown = {f"{p.system}, {p.task}": p.value for p in published if (p.set, p.metric) == (name, metric)}
            counts = sorted({each.count for each in found.values() if each is not None})
            row = [f"{name}, {metric}", "/".join(map(str, counts)), *(_cell(found[task]) for task in tasks)]
            row += [_number(gap(found[before], found[after])) for before, after in gaps.values()]
            rows.append(row + [_number(shown.get(system)) for system in systems])
    return markdown_table(["Set, figure", "Questions", *tasks, *gaps, *systems], rows)


def notes(results: Results) -> list[str]:
    """Return a remark for each different note of figures, with the figures that it is about."""
    found: dict[str, list[str]] = {}
    for name, by_task in results.items():
        for task, metrics in by_task.items():
            for metric in metrics:
                if metric.note:
                    found.setdefault(metric.note, []).append(f"{name}, {metric.name}, {task}")
    return [f"- {note}: {_listed(places)}" for note, places in found.items()]


def write_results(
    folder: Path, suite: Suite, results: Results, protocol: Mapping[str, Any], remarks: Sequence[str]
) -> str:
    """Write `<suite>.json` and `<suite>.md` to a folder, and return the text of the latter.

    Args:
        folder: output folder.
        suite: the suite.
        results: figures by set and task.
        protocol: what the figures depend on.
        remarks: further remarks below the table.
    """
    beside = [each for each in suite.published if fitting(each, results, protocol)]
    stem = suite.name.lower()
    sets = {
        name: {task: {m.name: _as_json(m) for m in metrics} for task, metrics in by_task.items()}
        for name, by_task in results.items()
    }
    gaps = {name: _gaps(by_task) for name, by_task in results.items()}
    content = {"suite": suite.name, "protocol": dict(protocol), "sets": sets, "gaps": gaps, "remarks": list(remarks)}
    write_json(folder / f"{stem}.json", {**content, "published": [asdict(each) for each in beside]})
    lines = [f"- {key.replace('_', ' ')}: {_shown(value)}" for key, value in protocol.items()]
    lines += [f"- {each.system}: {each.source}" for each in {p.system: p for p in beside}.values()]
    parts = [f"# {suite.name}", table(results, beside), "\n".join([*notes(results), *(f"- {r}" for r in remarks)])]
    text = "\n\n".join([*filter(None, parts), "\n".join(lines)]) + "\n"
    write_text(folder / f"{stem}.md", text)
    return text


def _named(metrics: Sequence[Metric], name: str) -> Metric | None:
    return next((metric for metric in metrics if metric.name == name), None)


def _gaps(by_task: Mapping[str, Sequence[Metric]]) -> dict[str, dict[str, float | None]]:
    names = dict.fromkeys(metric.name for metrics in by_task.values() for metric in metrics)
    return {
        step: {name: gap(_named(by_task[before], name), _named(by_task[after], name)) for name in names}
        for step, (before, after) in GAPS.items()
        if before in by_task and after in by_task
    }


def _as_json(metric: Metric) -> dict[str, Any]:
    found = asdict(metric)
    return {**found, "value": None if metric.value is None else round(metric.value, 4)}


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return MISSING
    return OPEN if metric.value is None else _number(metric.value)


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _listed(places: Sequence[str], most: int = 4) -> str:
    return "; ".join(places[:most]) + (f"; and {len(places) - most} more" if len(places) > most else "")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(each)}" for key, each in value.items()) or "none"
    return "none" if value is None else str(value)
