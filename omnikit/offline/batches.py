"""Answer many manifest entries in batches of similar lengths, with a progress bar; each gets an answer or a problem."""

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
    """Answer of a model to a manifest entry: decoded text and audio codes."""

    text: str
    codes: Tensor  # [K, T]; T = 0 where the task has no spoken answer
    truncated: bool = False  # whether the answer was ended by a limit of `Decoding`


def cut_short(reply: DecodedAnswer, task: Task) -> bool:
    """Return whether an answer was truncated; a spoken answer with text but no audio counts as truncated."""
    return reply.truncated or (task.speaks and bool(reply.text) and not reply.codes.shape[1])


@dataclass(frozen=True)
class Problem:
    """Reason why a manifest entry has no answer."""

    reason: str  # short name under which such entries are counted
    detail: str = ""  # explanation, such as the message of an error

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


NO_RECORDING = Problem("no recording")
Replied = Iterable[tuple[ManifestEntry, DecodedAnswer | Problem]]
Respond = Callable[[list[ManifestEntry]], Replied]
"""A function that answers a batch of manifest entries; it yields each with its answer or problem, in any order."""


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch size that is not an integer or is below 1.

    Raises:
        ValueError: the message names the flag `--batch_size`.
    """
    COUNT.check("batch_size", batch_size)


def in_batches(
    items: Sequence[Item], length: Callable[[Item], float], batch_size: int, title: str, *, quiet: bool = False
) -> Iterator[list[Item]]:
    """Yield batches of items of similar lengths under a progress bar, the longest first.

    So a batch that is too large for the memory fails at once and not after an hour.

    Args:
        items: items to be divided into batches.
        length: function that returns the length of an item, in any unit.
        batch_size: maximum number of items per batch.
        title: label of the progress bar.
        quiet: whether to show no progress bar.
    """
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
    """Answer manifest entries in batches and yield each with its answer or problem as soon as its batch is done.

    Entries without a usable question come first.

    Args:
        respond: function that answers a batch.
        task: task of the answers.
        entries: manifest entries of the questions.
        batch_size: maximum number of entries that are answered together.
        title: label of the progress bar; the default is the name of the task.
        quiet: whether to show no progress bar.
        max_seconds: maximum length of a recording; longer ones are a problem. None = `omnikit.audio.reader.LONGEST`.
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
    """Answer manifest entries in batches and return all answers by id, in the order of the entries.

    Returns:
        Answers by id, and the counts of the entries without an answer by reason.
    """
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
    """Answer manifest entries with a model in batches and return all answers by id; see `gather`."""
    respond = by_model(Decoder(model, decoding=decoding, strategy=strategy).with_capacity(batch_size), task)
    return gather(respond, task, entries, batch_size=batch_size, title=title)


def by_model(decoder: Decoder, task: Task) -> Respond:
    """Return a function that answers batches of manifest entries with a model.

    With greedy sampling the answers are the same as without batching.
    """
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
    """Decode the codes [K, T] of one utterance to a waveform [N] on the CPU; N = 0 if T = 0."""
    if not codes.shape[1]:
        return torch.zeros(0)
    with torch.inference_mode():
        return codec.decode(codes[None])[0].cpu()


def load_recordings(
    entries: Sequence[ManifestEntry], sample_rate: int
) -> tuple[list[tuple[ManifestEntry, Tensor]], list[tuple[ManifestEntry, Problem]]]:
    """Load the recordings of manifest entries as waveforms [N] at a sample rate in Hz.

    Returns:
        Entries with their waveforms, and the entries whose recording is missing or unusable with their problems.
    """
    loaded, problems = [], []
    for entry in entries:
        if entry.a1 is None:
            problems.append((entry, NO_RECORDING))
            continue
        try:
            loaded.append((entry, entry.a1.load(sample_rate)))
        except Unusable as error:
            problems.append((entry, Problem(error.reason, str(error))))
    return loaded, problems


def _length(task: Task, entry: ManifestEntry, max_seconds: float | None) -> float | Problem:
    """Return the length of an entry's question, or the problem for which it cannot be answered.

    The length is in characters, seconds, or frames if features are stored instead of a recording.
    """
    if task.given == "text":
        return len(entry.t1) if entry.t1.strip() else Problem("no text")
    if entry.a1 is None:
        return NO_RECORDING if entry.features is None else entry.features.frames
    found = entry.a1.check(max_seconds)
    return Problem(found.problem, found.detail) if found.problem else found.seconds


def _questions(
    model: OmniLM, task: Task, entries: list[ManifestEntry], encoder: Callable[[], str]
) -> Iterator[tuple[ManifestEntry, Question | Problem]]:
    """Yield each entry with the question that the model is asked, or with a problem.

    `encoder` is a function that returns the fingerprint of the model's encoder, which takes long to compute.
    """
    if task.given == "text":
        yield from ((entry, _text_question(model, entry.t1)) for entry in entries)
        return
    encoded = [entry for entry in entries if entry.a1 is None and entry.features is not None]
    yield from ((entry, _features_question(model, entry.features, encoder())) for entry in encoded)
    recorded = [entry for entry in entries if entry.a1 is not None or entry.features is None]
    loaded, problems = load_recordings(recorded, model.encoder.sample_rate)
    yield from problems
    yield from ((entry, Question(wav=wav)) for entry, wav in loaded)


def _features_question(model: OmniLM, features: Features, encoder: str) -> Question | Problem:
    if features.encoder != encoder:
        return Problem("foreign", f"features of the encoder {features.encoder}, the system's is {encoder}")
    return Question(features=features.load().to(model.device, torch.float32))


def _text_question(model: OmniLM, text: str) -> Question | Problem:
    try:
        return Question(text=model.llm.tokenizer.encode(text))
    except ValueError as error:  # characters that the tokenizer lacks
        return Problem("refused", one_line(error))
