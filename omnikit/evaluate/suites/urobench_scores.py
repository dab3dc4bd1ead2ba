"""The scores of URO-Bench that are computed from texts, as metrics/mark_wer.py and mark_gpt.py of the project do.

Project: Ruiqi-Yan/URO-Bench (MIT) at 9e74bc04. An error rate is that of an utterance, a fraction; the project averages
it over utterances. Here the rate of the corpus is computed, too.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from omnikit.errors import missing_package
from omnikit.evaluate.text_normalisation import Normalizer, normalizer

HANZI_PUNCTUATION = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟"  # noqa: RUF001
    "〰〾〿–—‘’‛“”„‟…‧﹏﹑﹔·．！？｡。"  # noqa: RUF001
)
"""Characters of `zhon.hanzi.punctuation` (tsroten/zhon 2.1.1, MIT), which the project removes from Chinese texts."""
_NOT_CHINESE = dict.fromkeys(map(ord, HANZI_PUNCTUATION + string.punctuation))
OK_RATE = 0.5
"""Largest error rate with which an answer counts as a repetition."""
_RATING = re.compile(r"\b[1-5]\b")
_VERDICT = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class TokenErrors:
    """Errors of a hypothesis, and the number of tokens of its reference: words in English, characters in Chinese."""

    errors: int
    tokens: int

    @property
    def rate(self) -> float:
        """Error rate as a fraction; 1 for an empty reference, for which jiwer 3.0.5 gives an error to the project."""
        return self.errors / self.tokens if self.tokens else 1.0


def token_errors(reference: str, hypothesis: str, language: str) -> TokenErrors:
    """Return the errors of a hypothesis in English or Chinese.

    Raises:
        ValueError: the language is Chinese and cn2an is not installed.
    """
    from torchaudio.functional import edit_distance

    found, said = tokens(reference, language), tokens(hypothesis, language)
    return TokenErrors(edit_distance(found, said), len(found))


def tokens(text: str, language: str) -> list[str]:
    """Return the normalised words of an English text, or the characters, spaces included, of a Chinese one."""
    if language == "zh":
        return list(_chinese()(text))
    return _english()(text.strip().lower()).split()


@functools.cache
def _english() -> Normalizer:
    return normalizer("english")


@functools.cache
def _chinese() -> Normalizer:
    """Return the project's normaliser of Chinese: punctuation goes first, then digits become Chinese numerals.

    Raises:
        ValueError: cn2an is not installed.
    """
    try:
        from cn2an import transform
    except ModuleNotFoundError as error:
        raise ValueError(missing_package(error.name)) from None

    def normalize(text: str) -> str:
        bare = text.translate(_NOT_CHINESE).replace("  ", " ")
        return transform(bare.strip().lower(), "an2cn").strip()

    return normalize


def mean_rate(groups: Sequence[Sequence[TokenErrors]]) -> float:
    """Return the mean of the groups' mean rates in percent; a group is an utterance or the rounds of a conversation."""
    return 100 * fmean(fmean(each.rate for each in group) for group in groups)


def corpus_rate(found: Sequence[TokenErrors]) -> float:
    """Return the errors of all utterances in percent of the tokens of all references."""
    return 100 * sum(each.errors for each in found) / max(1, sum(each.tokens for each in found))


@dataclass(frozen=True)
class Repetition:
    """How well answers repeat the texts that they were asked to repeat."""

    repeated: float
    """Percentage of answers with a rate of at most `OK_RATE`."""
    rate: float
    """Mean error rate in percent of the answers that count as repetitions; 0 if none does."""

    @property
    def score(self) -> float:
        """The project's score, 0 to 100 (evaluate.py)."""
        return self.repeated * (1 - self.rate / 100)


def repetition(texts: Sequence[str], answers: Sequence[str], language: str) -> Repetition:
    """Return how well answers repeat texts.

    The project passes the answer as reference and the text as hypothesis, so that a rate is relative to the length of
    the answer; so does this function.
    """
    pairs = zip(texts, answers, strict=True)
    rates = [token_errors(answer, text, language).rate for text, answer in pairs]
    good = [rate for rate in rates if rate <= OK_RATE]
    return Repetition(100 * len(good) / len(rates), 100 * fmean(good) if good else 0.0)


def rating_of(said: str) -> int | None:
    """Return the rating, 1 to 5, that a judgement gives; None if it gives none."""
    found = _RATING.search(said)
    return int(found[0]) if found else None


def verdict_of(said: str) -> bool | None:
    """Return whether a judgement begins with yes; None if it begins with neither yes nor no."""
    found = _VERDICT.match(said)
    return None if found is None else found[1].casefold() == "yes"
