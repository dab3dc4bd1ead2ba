"""Text normalisation: bring references and hypotheses to the same spelling before they are compared."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from importlib import metadata

from omnikit import __version__

Normalizer = Callable[[str], str]

REVISION = 2
"""Revision number of the text normaliser `plain`, increased with each change that can affect an error rate."""
JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner; they are part of words in Persian and in Indic scripts, and join emoji."""
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\uff07", "'"))
_QUOTED = re.compile(r"(?<!\w)\u2018([^\u2018]+?)\u2019(?!\w)")
"""Pattern of a passage between single quotation marks, which must not be taken for apostrophes."""
_DIRECTION = (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VARIANT = range(0xFE00, 0xFE10)
_INVISIBLE = dict.fromkeys((0xAD, 0x2060, 0xFEFF, *_DIRECTION, *_VARIANT))
"""Characters that are removed because they may occur within a word without being part of it: soft hyphen, word joiner,
byte order mark, direction marks and variation selectors."""


def plain(text: str) -> str:
    """Return a text case-folded, without punctuation and symbols and with single spaces; it has the same words.

    Letters, digits and combining marks of all scripts are kept, and so are apostrophes at and within words, however
    they are typed (`'`, U+2019, U+2018, U+02BC). The result is in NFC, so that encodings of the same character become
    equal. NFKC would also equate different characters, such as the square in `x²` with a 2. Unicode's case folding is
    used, so `STRASSE` equals `Straße`.
    """
    folded = unicodedata.normalize("NFD", text).casefold()
    folded = unicodedata.normalize("NFC", folded).translate(_INVISIBLE)
    spelled = _QUOTED.sub(r" \1 ", folded).translate(_APOSTROPHES)
    words = (word.strip(JOINERS) for word in "".join(map(_kept, spelled)).split())
    return " ".join(word for word in words if any(map(str.isalnum, word)))


@functools.lru_cache(maxsize=1 << 16)
def _kept(char: str) -> str:
    """Return a character unchanged if it can be part of a word, else a space."""
    return char if char == "'" or char in JOINERS or unicodedata.category(char)[0] in "LMN" else " "


def english() -> Normalizer:
    """Return Whisper's English text normaliser, which unifies spellings and contractions and writes numbers as digits.

    It joins neighbouring number words (`one two three` becomes `123`, one word), so lists of numbers are better scored
    with `plain`.
    """
    from whisper.normalizers import EnglishTextNormalizer  # takes seconds to import

    return EnglishTextNormalizer()


_MAKERS: dict[str, Callable[[], Normalizer]] = {"english": english, "plain": lambda: plain}


def normalizer_version(name: str) -> str:
    """Return a text normaliser's name with the versions on which its output depends.

    Figures of different versions may not be comparable.
    """
    if name == "plain":
        return f"plain (omnikit {__version__}, revision {REVISION}, Unicode {unicodedata.unidata_version})"
    return f"{name} (openai-whisper {metadata.version('openai-whisper')})"


def normalizer(name: str) -> Normalizer:
    """Return the text normaliser of a name, `english` or `plain`.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in _MAKERS:
        raise ValueError(f"--normalizer {name}: no such normalizer (choices: {', '.join(_MAKERS)})")
    return _MAKERS[name]()
