"""Compute word and character error rates (WER, CER) with SpeechBrain's ErrorRateStats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from omnikit.evaluate.text_normalisation import Normalizer
from omnikit.files import whole_text


@dataclass(frozen=True)
class Pair:
    """Reference and hypothesis of an utterance."""

    id: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class ErrorRates:
    """Word and character error rates of a set of utterances, in percent.

    WER (CER) is the number of errors in all utterances divided by the number of words (characters, spaces included) in
    the references. The mean of the utterances' own rates is given as well.

    If a reference is empty after normalisation, the words of its hypothesis count as insertions, and the utterance has
    no rate of its own. If all references are empty, the errors are divided by one word, as jiwer does, so that errors
    never result in a rate of 0 %.
    """

    utterances: int
    empty_references: int  # number of references that are empty after normalisation
    words: int  # number of words in the references
    wer: float
    wer_utterance_mean: float
    cer: float
    cer_utterance_mean: float
    insertions: int
    deletions: int
    substitutions: int
    exact: float  # percentage of utterances without an error

    def as_dict(self) -> dict[str, float]:
        """Return error rates and counts of errors as a dictionary for JSON, rounded to four decimals."""
        return {key: round(value, 4) for key, value in asdict(self).items()}


def empty_references(rates: ErrorRates) -> str:
    """Return the remark that a report contains if references are empty after normalisation."""
    return f"empty references: {rates.empty_references} (their words are insertions)"


def score(pairs: Sequence[Pair], normalize: Normalizer, alignments: Path | None = None) -> ErrorRates:
    """Compute the word and character error rates of hypotheses after text normalisation.

    Args:
        pairs: references and hypotheses, at least one pair, with distinct ids.
        normalize: text normalisation of both texts.
        alignments: file to which a summary and the alignment of every utterance are written; None = no file.
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
    """Return SpeechBrain's ErrorRateStats, with its summary, of utterances (id, reference tokens, hypothesis tokens).

    The summary's WER is replaced with one that is defined also for empty references.
    """
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
