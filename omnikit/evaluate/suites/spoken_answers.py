"""Figures of spoken answers for every suite: word error rate against their own text, truncation, invented words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from omnikit.evaluate.suites.answering import StoredAnswer
from omnikit.evaluate.suites.items import SuiteItem
from omnikit.evaluate.suites.suite import Metric, share
from omnikit.evaluate.text_normalisation import Normalizer, is_unspaced, of_language
from omnikit.evaluate.versa import SpokenAnswer, versa_key, versa_scores
from omnikit.evaluate.wer import Pair, remarks, score

WER, TRUNCATED, HALLUCINATED, MOS = "WER of speech %", "truncated %", "hallucinated %", "UTMOS"
MANY_TIMES, MANY_MORE = 1.5, 3
"""A transcript is hallucinated if it has at least this many times the words that were spoken, and this many more."""
NOT_HEARD = "open: needs a recogniser as judge (--judge)"


def is_hallucinated(spoken: str, heard: str, language: str = "") -> bool:
    """Return whether a recogniser heard many more words than were spoken; both texts are normalised.

    Recognisers invent or repeat words in noise, silence and garbled speech. That raises the word error rate without
    saying anything about the words that can be understood. In languages without spaces between words characters count.
    """
    words, found = (len("".join(s.split()) if is_unspaced(language) else s.split()) for s in (spoken, heard))
    return found >= max(MANY_TIMES * words, words + MANY_MORE)


def truncation(answers: Mapping[str, StoredAnswer]) -> Metric:
    """Return the percentage of answers that a limit ended, and of spoken ones without audio."""
    return share(TRUNCATED, sum(each.truncated for each in answers.values()), len(answers), better="lower")


def speech_metrics(
    items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer], normalize: Normalizer
) -> list[Metric]:
    """Return the word error rate of spoken answers against their own texts, and how many misled the recogniser.

    Answers without a text are left out.

    Args:
        items: questions.
        answers: spoken answers to all of them, by id.
        normalize: text normalisation of texts and transcripts, in the language of the question where it depends on it.
    """
    own = {item.language: of_language(normalize, item.language) for item in items}
    said = {item.id: own[item.language](answers[item.id].text) for item in items}
    spoken = [item for item in items if said[item.id]]
    if not spoken or any(answers[item.id].heard is None for item in spoken):
        note = NOT_HEARD if spoken else "open: no answer has a text"
        return [Metric(name, None, len(spoken), note, "lower") for name in (WER, HALLUCINATED)]
    heard = {item.id: own[item.language](answers[item.id].heard) for item in spoken}
    rates = score([Pair(item.id, said[item.id], heard[item.id], item.language) for item in spoken], str)
    invented = sum(is_hallucinated(said[item.id], heard[item.id], item.language) for item in spoken)
    note = "; ".join(remarks(rates)) or None
    return [
        Metric(WER, rates.wer, len(spoken), note, "lower"),
        share(HALLUCINATED, invented, len(spoken), better="lower"),
    ]


def naturalness(items: Sequence[SuiteItem], scores: Mapping[str, float]) -> Metric:
    """Return the mean of predicted opinion scores, by id, over the questions that have one."""
    found = [scores[item.id] for item in items if item.id in scores]
    return Metric(MOS, fmean(found) if found else None, len(found), None if found else "open: no answer has sound")


def to_versa(answers: Mapping[str, StoredAnswer]) -> Iterator[SpokenAnswer]:
    """Yield the spoken answers that have audio, with the text that they should say."""
    yield from (SpokenAnswer(name, each.wav, each.text) for name, each in answers.items() if each.wav is not None)


def versa_metrics(items: Sequence[SuiteItem], results: Mapping[str, Mapping[str, float]]) -> list[Metric]:
    """Return the metrics that VERSA computed for spoken answers; none if it has scored none of them.

    Args:
        items: questions.
        results: numbers of VERSA by the key of the answer, see `read_versa`.
    """
    keys = [versa_key(item.id) for item in items]
    scores = versa_scores([results[key] for key in keys if key in results])
    return [Metric(f"{name} (VERSA)", each.value, each.utterances, None, each.better) for name, each in scores.items()]
