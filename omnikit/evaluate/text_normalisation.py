"""Text normalisation: bring two texts to one spelling before they are compared."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from importlib import metadata

from omnikit import __version__

Normalizer = Callable[[str], str]

REVISION = 2
"""Of the rules of `plain`; raised with every change that can change a figure."""
JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: spelling in Persian and in Indic scripts, glue in emoji."""
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\uff07", "'"))
_QUOTED = re.compile(r"(?<!\w)\u2018([^\u2018]+?)\u2019(?!\w)")
"""A passage between single quotation marks, which are no apostrophes."""
_DIRECTION = (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VARIANT = range(0xFE00, 0xFE10)
_INVISIBLE = dict.fromkeys((0xAD, 0x2060, 0xFEFF, *_DIRECTION, *_VARIANT))
"""Soft hyphen, word joiner, byte order mark, marks of direction, variation selectors: they may stand within a word and
are no part of it."""


def plain(text: str) -> str:
    """Return the text in one case, without punctuation and symbols, with single spaces; every word stays a word.

    Letters, digits and combining marks of all scripts stay, as do apostrophes at and within words, however they are
    typed (`'`, U+2019, U+2018, U+02BC). The result is in NFC: spellings of the same characters become equal. NFKC would
    also equate different ones, such as the square in `x²` with a 2. Case is folded as Unicode does for comparisons
    without case, so `STRASSE` equals `Straße`.
    """
    folded = unicodedata.normalize("NFD", text).casefold()
    folded = unicodedata.normalize("NFC", folded).translate(_INVISIBLE)
    spelled = _QUOTED.sub(r" \1 ", folded).translate(_APOSTROPHES)
    words = (word.strip(JOINERS) for word in "".join(map(_kept, spelled)).split())
    return " ".join(word for word in words if any(map(str.isalnum, word)))


@functools.lru_cache(maxsize=1 << 16)
def _kept(char: str) -> str:
    """The character where it belongs to a word, else a space."""
    return char if char == "'" or char in JOINERS or unicodedata.category(char)[0] in "LMN" else " "


def english() -> Normalizer:
    """Whisper's English normaliser: spellings, contractions, and numbers as digits.

    It joins neighbouring number words (`one two three` becomes `123`, one word), so lists of numbers are better scored
    with `plain`.
    """
    from whisper.normalizers import EnglishTextNormalizer  # takes seconds to import

    return EnglishTextNormalizer()


_MAKERS: dict[str, Callable[[], Normalizer]] = {"english": english, "plain": lambda: plain}


def normalizer_version(name: str) -> str:
    """Return the normaliser's name and the versions that decide about its output; figures of two may differ."""
    if name == "plain":
        return f"plain (omnikit {__version__}, revision {REVISION}, Unicode {unicodedata.unidata_version})"
    return f"{name} (openai-whisper {metadata.version('openai-whisper')})"


def normalizer(name: str) -> Normalizer:
    """The normaliser of that name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in _MAKERS:
        raise ValueError(f"--normalizer {name}: no such normalizer (choices: {', '.join(_MAKERS)})")
    return _MAKERS[name]()
