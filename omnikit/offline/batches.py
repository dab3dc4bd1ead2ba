"""Many rows through a model: batches of like lengths, a progress bar, and for each row a reply or why there is none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from omnikit.audio.reader import Unusable
from omnikit.data.array_cache import fingerprint
from omnikit.data.manifest_reader import Features, ManifestEntry
from omnikit.data.skipped import Skipped
from omnikit.errors import one_line
from omnikit.generate import Answer, BadQuestion, Decoder, Decoding, Question
from omnikit.interfaces import Codec
from omnikit.model import OmniLM
from omnikit.option_ranges import COUNT
from omnikit.strategies import PARALLEL, Strategy
from omnikit.tasks import Task

Item = TypeVar("Item")


@dataclass(frozen=True)
class DecodedAnswer:
    """What a model made of a row."""

    text: str
    codes: Tensor  # [K, T]; T = 0 where the task does not speak
    truncated: bool = False  # cut by a limit of `Decoding`


def cut_short(reply: DecodedAnswer, task: Task) -> bool:
    """Whether a reply was cut; a spoken one also where there is text and no sound of it."""
    return reply.truncated or (task.speaks and bool(reply.text) and not reply.codes.shape[1])


@dataclass(frozen=True)
class Problem:
    """Why a row has no reply."""

    reason: str  # one of few, for counting
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


NO_RECORDING = Problem("no recording")
Replied = Iterable[tuple[ManifestEntry, DecodedAnswer | Problem]]
Respond = Callable[[list[ManifestEntry]], Replied]
"""A batch of rows -> each with its reply or problem, in any order."""


def check_batch_size(batch_size: int) -> None:
    """Refuse what is no whole number or below 1.

    Raises:
        ValueError: the message names the flag.
    """
    COUNT.check("batch_size", batch_size)


def in_batches(
    items: Sequence[Item], length: Callable[[Item], float], batch_size: int, title: str, *, quiet: bool = False
) -> Iterator[list[Item]]:
    """Batches of items of like lengths under a progress bar, the longest first: a batch too big for the memory fails at
    once and not after an hour."""
    check_batch_size(batch_size)
    ordered = sorted(items, key=length, reverse=True)
    with tqdm(total=len(ordered), desc=title, dynamic_ncols=True, disable=quiet or not ordered) as bar:
        for start in range(0, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            yield batch
            bar.update(len(batch))


def each_reply(
    respond: Respond,
    task: Task,
    entries: Iterable[ManifestEntry],
    *,
    batch_size: int,
    title: str = "",
    quiet: bool = False,
    max_seconds: float | None = None,
) -> Iterator[tuple[ManifestEntry, DecodedAnswer | Problem]]:
    """Each row once, as soon as its batch is done; first those that cannot be asked at all.

    Args:
        quiet: no progress bar.
        max_seconds: longer recordings are a problem; None = `omnikit.audio.reader.LONGEST`.
    """
    usable = []
    for entry in entries:
        length = _length(task, entry, max_seconds)
        if isinstance(length, Problem):
            yield entry, length
        else:
            usable.append((length, entry))
    for batch in in_batches(usable, itemgetter(0), batch_size, title or task.name, quiet=quiet):
        yield from respond([entry for _, entry in batch])


def gather(
    respond: Respond, task: Task, entries: Sequence[ManifestEntry], *, batch_size: int, title: str = ""
) -> tuple[dict[str, DecodedAnswer], Skipped]:
    """All replies by the rows' ids in their order, and the count of rows without one."""
    skipped, found = Skipped(), {}
    for entry, reply in each_reply(respond, task, entries, batch_size=batch_size, title=title):
        if isinstance(reply, Problem):
            skipped.add(reply.reason, entry.id)
        else:
            found[entry.id] = reply
    return {entry.id: found[entry.id] for entry in entries if entry.id in found}, skipped


def replies(
    model: OmniLM,
    task: Task,
    entries: Sequence[ManifestEntry],
    *,
    decoding: Decoding,
    strategy: Strategy = PARALLEL,
    batch_size: int = 16,
    title: str = "",
) -> tuple[dict[str, DecodedAnswer], Skipped]:
    """`gather` of what a model replies."""
    respond = by_model(Decoder(model, decoding=decoding, strategy=strategy).of_capacity(batch_size), task)
    return gather(respond, task, entries, batch_size=batch_size, title=title)


def by_model(decoder: Decoder, task: Task) -> Respond:
    """A model's replies to a task; with greedy sampling those that each row would get alone."""
    model, batch = decoder.model, decoder.batch()
    encoder = functools.cache(lambda: fingerprint(model.encoder))

    def respond(entries: list[ManifestEntry]) -> Replied:
        asked = []
        for entry, question in _questions(model, task, entries, encoder):
            if isinstance(question, Problem):
                yield entry, question
            else:
                asked.append((entry, question))
        outcomes = decoder.outcomes(task, [question for _, question in asked], batch)
        for (entry, _), outcome in zip(asked, outcomes, strict=True):
            yield entry, _reply(model, outcome)

    return respond


def _reply(model: OmniLM, outcome: Answer | BadQuestion) -> DecodedAnswer | Problem:
    if isinstance(outcome, BadQuestion):  # such as one longer than the backbone's positions
        return Problem("refused", one_line(outcome))
    return DecodedAnswer(model.llm.tokenizer.decode(outcome.text), outcome.codes, outcome.truncated)


def sound(codec: Codec, codes: Tensor) -> Tensor:
    """Codes of one utterance [K, T] -> waveform [N]; without a frame there is no sound."""
    if not codes.shape[1]:
        return torch.zeros(0)
    with torch.inference_mode():
        return codec.decode(codes[None])[0].cpu()


def load_recordings(
    entries: Sequence[ManifestEntry], sample_rate: int
) -> tuple[list[tuple[ManifestEntry, Tensor]], list[tuple[ManifestEntry, Problem]]]:
    """What is heard of rows: waveforms [N], and the rows whose recording cannot be read or that have none."""
    heard, problems = [], []
    for entry in entries:
        if entry.a1 is None:
            problems.append((entry, NO_RECORDING))
            continue
        try:
            heard.append((entry, entry.a1.load(sample_rate)))
        except Unusable as error:
            problems.append((entry, Problem(error.reason, str(error))))
    return heard, problems


def _length(task: Task, entry: ManifestEntry, max_seconds: float | None) -> float | Problem:
    """Of what a row asks: characters, seconds, or feature frames where it has no recording."""
    if task.given == "text":
        return len(entry.t1) if entry.t1.strip() else Problem("no text")
    if entry.a1 is None:
        return NO_RECORDING if entry.features is None else entry.features.frames
    found = entry.a1.check(max_seconds)
    return Problem(found.problem, found.detail) if found.problem else found.seconds


def _questions(
    model: OmniLM, task: Task, entries: list[ManifestEntry], encoder: Callable[[], str]
) -> Iterator[tuple[ManifestEntry, Question | Problem]]:
    """`encoder` gives the fingerprint of the model's."""
    if task.given == "text":
        yield from ((entry, _read(model, entry.t1)) for entry in entries)
        return
    ready = [entry for entry in entries if entry.a1 is None and entry.features is not None]
    yield from ((entry, _ready(model, entry.features, encoder())) for entry in ready)
    recorded = [entry for entry in entries if entry.a1 is not None or entry.features is None]
    heard, problems = load_recordings(recorded, model.encoder.sample_rate)
    yield from problems
    yield from ((entry, Question(wav=wav)) for entry, wav in heard)


def _ready(model: OmniLM, features: Features, encoder: str) -> Question | Problem:
    if features.encoder != encoder:
        return Problem("foreign", f"features of the encoder {features.encoder}, the system's is {encoder}")
    return Question(features=features.load().to(model.device, torch.float32))


def _read(model: OmniLM, text: str) -> Question | Problem:
    try:
        return Question(text=model.llm.tokenizer.encode(text))
    except ValueError as error:  # characters that the tokenizer lacks
        return Problem("refused", one_line(error))
