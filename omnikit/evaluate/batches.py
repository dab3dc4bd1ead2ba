"""A whole corpus through a model: batches of like lengths, a progress bar, unreadable recordings counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from omnikit.data.rows import Row
from omnikit.data.skipped import Skipped
from omnikit.generate import Decoding, Question, answers
from omnikit.model import OmniLM
from omnikit.strategies import PARALLEL, Strategy
from omnikit.tasks import Task

Item = TypeVar("Item")


@dataclass(frozen=True)
class Reply:
    """What a model made of a row."""

    text: str
    codes: Tensor  # [K, T]; T = 0 where the task does not speak
    truncated: bool  # cut at the greatest number of steps


def in_batches(
    items: Sequence[Item], length: Callable[[Item], float], batch_size: int, title: str
) -> Iterator[list[Item]]:
    """Batches of items of like lengths under a progress bar, the longest first: a batch too big for the memory fails at
    once and not after an hour."""
    if batch_size < 1:
        raise ValueError(f"--batch_size {batch_size}: must be 1 or more")
    ordered = sorted(items, key=length, reverse=True)
    with tqdm(total=len(ordered), desc=title, dynamic_ncols=True) as bar:
        for start in range(0, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            yield batch
            bar.update(len(batch))


def replies(
    model: OmniLM,
    task: Task,
    rows: Sequence[Row],
    *,
    decoding: Decoding,
    strategy: Strategy = PARALLEL,
    batch_size: int = 16,
    title: str = "",
) -> tuple[dict[str, Reply], Skipped]:
    """A task's answer to every row, by the rows' ids in their order, and the rows whose recording cannot be read."""
    skipped, found = Skipped(), {}
    lengths = {row.id: length for row in rows if (length := _length(task, row, skipped)) is not None}
    usable = [row for row in rows if row.id in lengths]
    for batch in in_batches(usable, lambda row: lengths[row.id], batch_size, title or task.name):
        for row, reply in _reply(model, task, batch, decoding, strategy, skipped):
            found[row.id] = reply
    return {row.id: found[row.id] for row in rows if row.id in found}, skipped


def _length(task: Task, row: Row, skipped: Skipped) -> float | None:
    """Of what a row asks: seconds or characters; None where its recording cannot be read."""
    clip = row.heard(task)
    if clip is None:
        return len(row.t1)
    try:
        return clip.seconds()
    except (RuntimeError, OSError):  # libsndfile's errors are runtime errors
        skipped.add("unreadable", row.id)
        return None


def _reply(
    model: OmniLM, task: Task, rows: list[Row], decoding: Decoding, strategy: Strategy, skipped: Skipped
) -> Iterator[tuple[Row, Reply]]:
    if task.given == "text":
        questions = [Question(text=model.llm.tokenizer.encode(row.t1)) for row in rows]
    else:
        heard = [(row, wav) for row in rows if (wav := _load(row, task, model, skipped)) is not None]
        rows = [row for row, _ in heard]
        questions = hear(model, [wav for _, wav in heard]) if heard else []
    if questions:
        given = answers(model, task, questions, decoding=decoding, strategy=strategy)
        for row, answer in zip(rows, given, strict=True):
            yield row, Reply(model.llm.tokenizer.decode(answer.text), answer.codes, answer.truncated)


def _load(row: Row, task: Task, model: OmniLM, skipped: Skipped) -> Tensor | None:
    try:
        return row.heard(task).load(model.encoder.sample_rate)
    except ValueError:
        skipped.add("unreadable", row.id)
        return None


def hear(model: OmniLM, wavs: list[Tensor]) -> list[Question]:
    """Waveforms [N] at the encoder's rate -> questions, encoded as one batch."""
    lengths = torch.tensor([wav.shape[0] for wav in wavs])
    with torch.inference_mode():
        padded = pad_sequence(wavs, batch_first=True).to(model.device)
        features, frames = model.encoder(padded, lengths.to(model.device))
    return [Question(features=features[b, : int(n)]) for b, n in enumerate(frames)]
