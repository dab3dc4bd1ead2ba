"""Validation by decoding: error rates of greedy answers to some validation entries after each epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.data.sources import read_entries, read_features, serves
from omnikit.evaluate.text_normalisation import plain
from omnikit.evaluate.wer import Pair, score
from omnikit.generate import BadQuestion, Decoder, Decoding, Question
from omnikit.model import OmniLM
from omnikit.tasks import TASKS, Task
from omnikit.train.distributed import gather_shares, own_share

logger = logging.getLogger(__name__)
_BATCH = 32
_BEAT = 16 * _BATCH  # questions that are decoded between two signs of progress
_MARGIN = 16  # steps beyond the longest reference
Target = tuple[str, str]
"""The reference of an answer, and its language; "" = unknown."""


class Validation:
    """A callable that decodes entries of each validation source greedily and returns error rates in percent.

    The first `decode` entries of a source (0 for none) are decoded for each of its tasks that has a text answer and no
    spoken one; of a source with `every_stage: true` also tasks that the stage does not train, which shows what it
    forgets. Of a dialog the first turn is answered, since the others need it; all turns are transcribed. The figures
    are `wer`, the word error rate of transcripts (the character error rate where the manifest names a language without
    spaces between words), and `wrong T1T2` and so on, the percentage of answers that differ from the reference. Texts
    are normalised by `omnikit.evaluate.text_normalisation.plain`.
    """

    def __init__(
        self,
        model: OmniLM,
        sources: dict[str, dict[str, Any] | None],
        *,
        tasks: dict[str, float],
        cache_folder: str | Path,
    ):
        self.material: list[tuple[Task, list[Question], list[Target]]] = []
        for name, options in sources.items():
            if options is None:
                continue
            served = [task for task in map(TASKS.get, options["tasks"]) if serves(options, task, tasks)]
            wanted = [task for task in served if not task.speaks]
            if wanted and options["decode"]:
                entries = read_entries(name, {**options, "limit": options["decode"]}, cache_folder)
                found = [_questions(model, task, entries, name, cache_folder) for task in wanted]
                self.material += [each for each in found if each[1]]

    def __call__(self, brain: Any) -> dict[str, float]:
        """Return the error rates of the brain's model by name, in percent; each process decodes its share."""
        model = brain.model
        training = model.training
        model.eval()
        try:
            return self._figures(model, brain.parallel.beat)
        finally:
            model.train(training)

    def _figures(self, model: OmniLM, beat: Callable[[], None]) -> dict[str, float]:
        figures = {}
        for task, questions, targets in self.material:
            longest = max(len(model.llm.tokenizer.encode(text)) for text, _ in targets)
            decoder = Decoder(model, decoding=Decoding(max_steps=longest + _MARGIN), capacity=_BATCH)
            texts = gather_shares(hypotheses(decoder, task, own_share(questions), beat))
            both = enumerate(zip(targets, texts, strict=True))
            rates = score([Pair(str(i), target, given, language) for i, ((target, language), given) in both], plain)
            if task.transcribes:
                figures["wer"] = rates.wer
            else:
                figures[f"wrong {task.name}"] = 100 - rates.exact
        return figures


def first_turns(entries: Iterable[ManifestEntry]) -> list[ManifestEntry]:
    """Return the entries without a dialog, and the first turn of each dialog."""
    firsts: dict[str, ManifestEntry] = {}
    for entry in entries:
        key = f"dialog {entry.dialog}" if entry.dialog else f"entry {entry.id}"
        if entry.dialog and entry.turn is None:
            continue
        if key not in firsts or entry.turn < firsts[key].turn:
            firsts[key] = entry
    return list(firsts.values())


def hypotheses(
    decoder: Decoder, task: Task, questions: list[Question], beat: Callable[[], None] = lambda: None
) -> list[str]:
    """Return the answer texts of questions; an invalid question gives an empty text, which counts as wrong.

    Args:
        beat: called from time to time, to show that the process is at work.
    """
    texts = []
    for start in range(0, len(questions), _BEAT):
        beat()
        for outcome in decoder.outcomes(task, questions[start : start + _BEAT]):
            if isinstance(outcome, BadQuestion):
                logger.warning("validation: %s", outcome)
            texts.append("" if isinstance(outcome, BadQuestion) else decoder.model.llm.tokenizer.decode(outcome.text))
    return texts


def _questions(
    model: OmniLM, task: Task, entries: list[ManifestEntry], name: str, cache_folder: str | Path
) -> tuple[Task, list[Question], list[Target]]:
    entries = [entry for entry in (entries if task.repeats else first_turns(entries)) if entry.serves(task)]
    if task.given == "speech":
        features = read_features(model, entries, cache_folder, f"{name}-decode")
        entries = [entry for entry in entries if entry in features]
        questions = [Question(features=features[entry].float()) for entry in entries]
    else:
        questions = [Question(text=model.llm.tokenizer.encode(entry.t1)) for entry in entries]
    return task, questions, [(entry.target_text(task), entry.language) for entry in entries]
