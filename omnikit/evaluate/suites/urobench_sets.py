"""The sets of URO-Bench and figures of its leaderboard, from scripts/config.sh, evaluate.py and README.md.

Project: Ruiqi-Yan/URO-Bench at 9e74bc04.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from omnikit.evaluate.suites.suite import ALL, Published

LAYOUT = "Ruiqi-Yan/URO-Bench at 9e74bc04"
LEADERBOARD = f"{LAYOUT}, README.md"
LEVELS = ("basic", "pro")
REPEAT, DIALOG_MODES = "wer", ("multi", "sa")
"""Mode of the sets that ask to repeat a text, and modes of those that are conversations of several rounds."""
SCORE, REPEATED = "score", "repeated %"


@dataclass(frozen=True)
class UROSet:
    """One set of URO-Bench."""

    name: str
    count: int
    """Number of questions, or of conversations."""
    mode: str
    """How answers are scored, `--mode` of the project's mark.py."""
    level: str
    language: str
    """Language in which the set is scored, `en` or `zh`."""

    @property
    def has_rounds(self) -> bool:
        """Whether the set is of conversations of several rounds."""
        return self.mode in DIALOG_MODES

    @property
    def spoken_language(self) -> str:
        """ISO 639-1 code of the language of questions and answers; "" where it differs between questions."""
        return "" if self.name == MULTILINGUAL else self.language

    @property
    def track(self) -> str:
        """Name of the track that the leaderboard averages, such as `basic en`."""
        return f"{self.level} {self.language}"


MULTILINGUAL = "Multilingual"
_TABLE = """
AlpacaEval 199 open basic en
CommonEval 200 open basic en
WildchatEval 349 open basic en
StoralEval 201 semi-open basic en
Summary 118 semi-open basic en
TruthfulEval 470 semi-open basic en
GaokaoEval 303 qa basic en
Gsm8kEval 582 qa basic en
MLC 177 qa basic en
Repeat 252 wer basic en
AlpacaEval-zh 147 open basic zh
Claude-zh 222 open basic zh
Wildchat-zh 299 open basic zh
SQuAD-zh 153 qa basic zh
APE-zh 190 qa basic zh
MLC-zh 145 qa basic zh
OpenbookQA-zh 189 qa basic zh
HSK5-zh 100 qa basic zh
LCSTS-zh 119 semi-open basic zh
Repeat-zh 127 wer basic zh
CodeSwitching-en 70 semi-open pro en
CodeSwitching-zh 70 semi-open pro zh
GenEmotion-en 54 ge pro en
GenEmotion-zh 43 ge pro zh
GenStyle-en 44 gs pro en
GenStyle-zh 39 gs pro zh
MLCpro-en 91 qa pro en
MLCpro-zh 64 qa pro zh
Safety-en 25 sf pro en
Safety-zh 25 sf pro zh
SRT-en 43 srt pro en
SRT-zh 25 srt pro zh
UnderEmotion-en 137 ue pro en
UnderEmotion-zh 79 ue pro zh
Multilingual 1108 ml pro en
ClothoEval-en 265 qa pro en
MuChoEval-en 311 qa pro en
MtBenchEval-en 190 multi pro en
SpeakerAware-en 55 sa pro en
SpeakerAware-zh 49 sa pro zh
"""
SETS = {
    name: UROSet(name, int(count), mode, level, language)
    for name, count, mode, level, language in map(str.split, _TABLE.strip().splitlines())
}
"""Sets by name, in the order of the project's scripts."""
TRACKS = tuple(dict.fromkeys(each.track for each in SETS.values()))
FIELDS_OF_MODE = {"ge": ("emotion",), "ue": ("emotion",), "gs": ("style",), "ml": ("requirement",)}
"""Mapping from mode to the fields that a row needs besides recording and text."""
_JUDGED_BY_WHISPER = {"recogniser": "whisper_large_v3"}
_REPEAT = {
    "GLM-4-Voice": 90.95, "Freeze-Omni": 70.89, "LLaMA-Omni": 45.62, "SLAM-Omni": 12.26, "Mini-Omni2": 8.10,
    "Mini-Omni": 5.07,
}  # fmt: skip
_ASR_WER = {
    "basic en": {
        "GLM-4-Voice": 12.71, "Freeze-Omni": 16.32, "LLaMA-Omni": 10.42, "SLAM-Omni": 4.54, "Mini-Omni2": 10.24,
        "Mini-Omni": 6.05,
    },
    "pro en": {
        "GLM-4-Voice": 9.67, "LLaMA-Omni": 7.13, "Freeze-Omni": 25.94, "SLAM-Omni": 3.61, "Mini-Omni2": 7.62,
        "Mini-Omni": 5.63,
    },
}  # fmt: skip


def track_score(track: str) -> str:
    """Return the name of the mean score of a track."""
    return f"score, {track}"


def track_rate(track: str) -> str:
    """Return the name of the mean error rate of a track's spoken answers."""
    return f"{rate_name(track.split()[1])}, {track}"


def rate_name(language: str) -> str:
    """Return the project's name of the error rate of spoken answers in a language, in percent."""
    return "ASR-CER %" if language == "zh" else "ASR-WER %"


def rated(each: UROSet) -> bool:
    """Return whether URO-Bench's scripts compute a set's word error rate: not of the multilingual set."""
    return each.name != MULTILINGUAL


def published() -> Iterator[Published]:
    """Yield the published figures that depend on no LLM: those of Repeat, and the error rates of spoken answers.

    The project's judge draws three answers of gpt-4o-mini at temperature 0.5, ours gives one at temperature 0. Its
    recogniser of Chinese, paraformer-zh, is none of ours.
    """
    for system, value in _REPEAT.items():
        count = SETS["Repeat"].count
        yield Published(system, "Repeat", SCORE, "A1A2", value, count, LEADERBOARD, _JUDGED_BY_WHISPER)
    for track, figures in _ASR_WER.items():
        chosen = [each for each in SETS.values() if each.track == track and rated(each)]
        for system, value in figures.items():
            name, count = track_rate(track), sum(each.count for each in chosen)
            yield Published(system, ALL, name, "A1A2", value, count, LEADERBOARD, _JUDGED_BY_WHISPER)
