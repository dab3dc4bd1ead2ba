"""Compute word and character error rates (WER, CER) with SpeechBrain's ErrorRateStats.

Texts in languages that are written without spaces between words are scored by characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from omnikit.evaluate.text_normalisation import Normalizer, is_unspaced, of_language
from omnikit.files import whole_text


@dataclass(frozen=True)
class Pair:
    """Reference and hypothesis of an utterance."""

    id: str
    reference: str
    hypothesis: str
    language: str = ""  # ISO 639-1 code of their language; "" = unknown


@dataclass(frozen=True)
class ErrorRates:
    """Word and character error rates of a set of utterances, in percent.

    WER (CER) is the number of errors in all utterances divided by the number of words (characters, spaces included) in
    the references. The mean of the utterances' own rates is given as well. In languages that are written without spaces
    between words, spaces do not count and each character counts as a word, so that WER and CER are equal there.

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
    by_characters: int = 0  # number of utterances in languages without spaces between words

    @property
    def has_words(self) -> bool:
        """Whether at least one utterance is in a language with spaces between words, so that there is a WER."""
        return self.by_characters < self.utterances

    def as_dict(self) -> dict[str, float | None]:
        """Return error rates and counts of errors as a dictionary for JSON, rounded to four decimals.

        The word error rates are None if no utterance has words.
        """
        rates = {key: round(value, 4) for key, value in asdict(self).items()}
        return rates if self.has_words else {**rates, "wer": None, "wer_utterance_mean": None}


def remarks(rates: ErrorRates) -> list[str]:
    """Return the remarks that a report contains if references are empty or texts are scored by characters."""
    found = []
    if rates.empty_references:
        found.append(f"empty references: {rates.empty_references} (their words are insertions)")
    if rates.by_characters:
        found.append(f"scored by characters, without spaces: {rates.by_characters} of {rates.utterances} utterances")
    return found


def score(pairs: Sequence[Pair], normalize: Normalizer, alignments: Path | None = None) -> ErrorRates:
    """Compute the word and character error rates of hypotheses after text normalisation.

    Args:
        pairs: references and hypotheses, at least one pair, with distinct ids.
        normalize: text normalisation of both texts, in the language of the pair where it depends on the language.
        alignments: file to which a summary and the alignment of every utterance are written; None = no file.
    """
    assert pairs, "nothing to score"
    texts = [_normalized(pair, normalize) for pair in pairs]
    apart = [list if is_unspaced(pair.language) else str.split for pair in pairs]
    both = list(zip(pairs, texts, apart, strict=True))
    words = _stats([(pair.id, split(ref), split(hyp)) for pair, (ref, hyp), split in both])
    characters = _stats([(pair.id, list(ref), list(hyp)) for pair, (ref, hyp), _ in both])
    if alignments is not None:
        with whole_text(alignments) as stream:
            words.write_stats(stream)
    summary = words.summary
    return ErrorRates(
        utterances=len(pairs),
        empty_references=sum(not reference for reference, _ in texts),
        words=summary["num_scored_tokens"],
        wer=summary["WER"],
        wer_utterance_mean=_mean(words),
        cer=characters.summary["WER"],
        cer_utterance_mean=_mean(characters),
        insertions=summary["insertions"],
        deletions=summary["deletions"],
        substitutions=summary["substitutions"],
        exact=100.0 - summary["SER"],
        by_characters=sum(split is list for split in apart),
    )


def _normalized(pair: Pair, normalize: Normalizer) -> tuple[str, str]:
    """Return the normalised reference and hypothesis of a pair, without spaces if it is scored by characters."""
    own = of_language(normalize, pair.language)
    found = own(pair.reference), own(pair.hypothesis)
    return tuple("".join(text.split()) for text in found) if is_unspaced(pair.language) else found


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
