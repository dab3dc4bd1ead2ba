"""What a model gets right after an epoch: greedy answers to some validation rows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.data.sources import read_entries, read_features
from omnikit.evaluate.text_normalisation import plain
from omnikit.evaluate.wer import Pair, score
from omnikit.generate import BadQuestion, Decoder, Decoding, Question
from omnikit.model import OmniLM
from omnikit.tasks import TASKS, Task

logger = logging.getLogger(__name__)
_BATCH = 32
_MARGIN = 16  # steps beyond the longest right answer


class Validation:
    """Decodes, of each validation source, `decode` rows (0: none) for each wanted task that writes text.

    Figures, in percent: `wer` of transcripts; `wrong T1T2` and so on, the share of answers that are not the right text.
    Texts are compared as `omnikit.evaluate.text_normalisation.plain` spells them.
    Spoken answers are decoded as text alone, which is what is checked here.
    """

    def __init__(
        self,
        model: OmniLM,
        sources: dict[str, dict[str, Any] | None],
        *,
        tasks: dict[str, float],
        cache_folder: str | Path,
    ):
        self.material: list[tuple[Task, list[Question], list[str]]] = []
        for name, options in sources.items():
            if options is None:
                continue
            wanted = [TASKS[t] for t in options["tasks"] if tasks.get(t, 0) > 0 and not TASKS[t].speaks]
            if wanted and options["decode"]:
                entries = read_entries(name, {**options, "limit": options["decode"]}, cache_folder)
                found = [_questions(model, task, entries, name, cache_folder) for task in wanted]
                self.material += [each for each in found if each[1]]

    def __call__(self, brain: Any) -> dict[str, float]:
        """Figures of the brain's model as it is."""
        model = brain.model
        training = model.training
        model.eval()
        try:
            return self._figures(model)
        finally:
            model.train(training)

    def _figures(self, model: OmniLM) -> dict[str, float]:
        figures = {}
        for task, questions, targets in self.material:
            longest = max(len(model.llm.tokenizer.encode(target)) for target in targets)
            decoder = Decoder(model, decoding=Decoding(max_steps=longest + _MARGIN), capacity=_BATCH)
            said = hypotheses(decoder, task, questions)
            rates = score([Pair(str(i), *texts) for i, texts in enumerate(zip(targets, said, strict=True))], plain)
            if task.transcribes:
                figures["wer"] = rates.wer
            else:
                figures[f"wrong {task.name}"] = 100 - rates.exact
        return figures


def hypotheses(decoder: Decoder, task: Task, questions: list[Question]) -> list[str]:
    """Return the texts of the answers; an empty one for a question that cannot be asked, which counts as wrong."""
    texts = []
    for outcome in decoder.outcomes(task, questions):
        if isinstance(outcome, BadQuestion):
            logger.warning("validation: %s", outcome)
        texts.append("" if isinstance(outcome, BadQuestion) else decoder.model.llm.tokenizer.decode(outcome.text))
    return texts


def _questions(
    model: OmniLM, task: Task, entries: list[ManifestEntry], name: str, cache_folder: str | Path
) -> tuple[Task, list[Question], list[str]]:
    entries = [entry for entry in entries if entry.serves(task)]
    if task.given == "speech":
        heard = read_features(model, entries, cache_folder, f"{name}-decode")
        entries = [entry for entry in entries if entry in heard]
        questions = [Question(features=heard[entry].float()) for entry in entries]
    else:
        questions = [Question(text=model.llm.tokenizer.encode(entry.t1)) for entry in entries]
    return task, questions, [entry.target_text(task) for entry in entries]
