"""The `sources` of a recipe: where rows come from and which tasks they serve."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from omnikit.data.prepare import codes_of, features_of
from omnikit.data.rows import Clip, Row, rows_from_csv, rows_from_parquet
from omnikit.data.samples import Source
from omnikit.model import OmniLM
from omnikit.tasks import TASKS


def read_sources(
    sources: dict[str, dict[str, Any]], model: OmniLM, *, tasks: dict[str, float], cache_folder: str | Path
) -> list[Source]:
    """Rows with encoder features and codes, as far as the wanted tasks need them.

    Args:
        sources: name -> `{csv: FILE}` or `{parquet: FILE, answers: FILE}`, with `tasks: [..]` that it may serve, and
            `limit: N` for a part of its rows, chosen at random.
        tasks: the mix; what no wanted task needs is not made.

    Raises:
        ValueError: a missing file or an unknown task.
    """
    return [_read(name, options, model, tasks, cache_folder) for name, options in sources.items()]


def read_rows(name: str, options: dict[str, Any], cache_folder: str | Path) -> list[Row]:
    """The rows of one source.

    Raises:
        ValueError: neither a csv nor a parquet file is named.
    """
    if "csv" in options:
        rows = rows_from_csv(options["csv"])
    elif "parquet" in options:
        rows = rows_from_parquet(options["parquet"], options.get("answers"), Path(cache_folder) / "tables")
    else:
        raise ValueError(f"sources.{name}: no file; choices: csv, parquet")
    limit = options.get("limit")
    return rows if limit is None or limit >= len(rows) else random.Random(0).sample(rows, limit)


def _read(
    name: str, options: dict[str, Any], model: OmniLM, tasks: dict[str, float], cache_folder: str | Path
) -> Source:
    for task in options["tasks"]:
        if task not in TASKS:
            raise ValueError(f"sources.{name}.tasks: no such task {task!r}; choices: {', '.join(TASKS)}")
    wanted = [TASKS[t] for t in options["tasks"] if tasks.get(t, 0) > 0]
    if not wanted:
        return Source([], ())
    rows = read_rows(name, options, cache_folder)
    heard = _clips([row.heard(task) for task in wanted for row in rows])
    spoken = _clips([row.spoken(task) for task in wanted for row in rows])
    return Source(
        rows,
        tuple(task.name for task in wanted),
        features_of(model.encoder, heard, cache_folder, name) if heard else None,
        codes_of(model.codec, spoken, cache_folder, name) if spoken else None,
    )


def _clips(clips: list[Clip | None]) -> list[Clip]:
    return [clip for clip in clips if clip is not None]
