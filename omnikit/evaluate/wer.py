"""Word and character error rates, counted by SpeechBrain's ErrorRateStats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from omnikit.evaluate.text_normalisation import Normalizer
from omnikit.files import whole_text


@dataclass(frozen=True)
class Pair:
    """What was said and what was understood."""

    id: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class ErrorRates:
    """Rates in percent: errors of all utterances over their reference words (or characters, spaces included), and the
    mean of the utterances' own rates.

    What is understood where the reference is empty after normalisation counts as insertions. Such an utterance has no
    rate of its own; where there is no other, errors are divided by one word, as jiwer does, so that errors are never a
    rate of 0 %.
    """

    utterances: int
    empty_references: int  # utterances without a reference word
    words: int  # in the references
    wer: float
    wer_utterance_mean: float
    cer: float
    cer_utterance_mean: float
    insertions: int
    deletions: int
    substitutions: int
    exact: float  # share of utterances without an error

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {key: round(value, 4) for key, value in asdict(self).items()}


def empty_references(rates: ErrorRates) -> str:
    """Return the remark that a report makes where references are empty after normalisation."""
    return f"empty references: {rates.empty_references} (their words are insertions)"


def score(pairs: Sequence[Pair], normalize: Normalizer, alignments: Path | None = None) -> ErrorRates:
    """Error rates of pairs after normalisation.

    Args:
        pairs: at least one; ids are distinct.
        normalize: applied to both texts.
        alignments: file for the summary and the alignment of every utterance.
    """
    assert pairs, "nothing to score"
    texts = [(pair.id, normalize(pair.reference), normalize(pair.hypothesis)) for pair in pairs]
    words = _stats([(name, ref.split(), hyp.split()) for name, ref, hyp in texts])
    characters = _stats([(name, list(ref), list(hyp)) for name, ref, hyp in texts])
    if alignments is not None:
        with whole_text(alignments) as stream:
            words.write_stats(stream)
    summary = words.summary
    return ErrorRates(
        utterances=len(pairs),
        empty_references=sum(not reference for _, reference, _ in texts),
        words=summary["num_scored_tokens"],
        wer=summary["WER"],
        wer_utterance_mean=_mean(words),
        cer=characters.summary["WER"],
        cer_utterance_mean=_mean(characters),
        insertions=summary["insertions"],
        deletions=summary["deletions"],
        substitutions=summary["substitutions"],
        exact=100.0 - summary["SER"],
    )


def _stats(utterances: list[tuple[str, list[str], list[str]]]):
    """(id, reference tokens, hypothesis tokens) -> ErrorRateStats with its summary."""
    from speechbrain.utils.metric_stats import ErrorRateStats

    stats = ErrorRateStats()
    names, references, hypotheses = map(list, zip(*utterances, strict=True))
    stats.append(names, predict=hypotheses, target=references)
    summary = stats.summarize()
    summary["WER"] = 100.0 * summary["num_edits"] / max(1, summary["num_scored_tokens"])
    return stats


def _mean(stats) -> float:
    rates = [utterance["WER"] for utterance in stats.scores if utterance["num_ref_tokens"]]
    return fmean(rates) if rates else stats.summary["WER"]
