"""Text normalisation: bring references and hypotheses to the same spelling before they are compared."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from importlib import metadata

from omnikit import __version__
from omnikit.errors import missing_package

Normalizer = Callable[[str], str]

UNSPACED = frozenset(("zh", "yue", "ja", "th", "lo", "my", "km"))
"""ISO 639 codes of languages that are written without spaces between words, and are therefore scored by characters.

Whisper's tokenizer lists the same languages (`split_to_word_tokens`) but for Khmer, whose spaces separate phrases."""
CHINESE = ("zh", "yue")
_SYNONYMS = {"cmn": "zh", "eng": "en", "jpn": "ja", "zho": "zh"}
"""Mapping from ISO 639-3 codes that voices and corpora use to the codes of this file."""
_WIDE = {0xFF10 + i: str(i) for i in range(10)} | {0xFF05: "%", 0xFF0E: ".", 0xFF08: "(", 0xFF09: ")"}
"""Mapping from full-width digits, percent sign and full stop to those of ASCII."""
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")

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


def basic() -> Normalizer:
    """Return Whisper's text normaliser for other languages than English.

    It removes case, punctuation, symbols and all that stands in brackets, and compares texts in NFKC. Combining marks
    become spaces, which tears words of Devanagari, Thai and other scripts apart; `plain` keeps them.
    """
    from whisper.normalizers import BasicTextNormalizer  # takes seconds to import

    normalize = BasicTextNormalizer()
    return lambda text: normalize(text).strip()


def chinese() -> Normalizer:
    """Return a text normaliser for Chinese, which writes numbers in characters (cn2an) and then applies `basic`.

    Numbers in digits, with percent signs, fractions and dates become what is said (`50%` becomes `百分之五十`), because
    recognisers differ in how they write them. Traditional and simplified characters stay different.

    Raises:
        ValueError: the package cn2an is not installed.
    """
    try:
        from cn2an import transform
    except ModuleNotFoundError as error:
        raise ValueError(f"--normalizer chinese: {missing_package(error.name)}") from None
    normalize = basic()

    def numbers_in_characters(text: str) -> str:
        digits = _THOUSANDS.sub("", text.translate(_WIDE))
        return normalize(transform(digits, "an2cn")).replace(" ", "")

    return numbers_in_characters


class NormalizerByLanguage:
    """A text normaliser that is `english` for English, `chinese` for Chinese, and `basic` for all other languages.

    Called with a text alone, whose language is unknown, it is `basic`.
    """

    def __call__(self, text: str) -> str:
        return self.of("")(text)

    def of(self, language: str) -> Normalizer:
        """Return the text normaliser of a language; "" = unknown.

        Raises:
            ValueError: the language is Chinese and cn2an is not installed.
        """
        return _shared(name_of_language(language))


def name_of_language(language: str) -> str:
    """Return the name of the text normaliser that `by_language` applies to a language."""
    code = language_code(language)
    return "english" if code == "en" else "chinese" if code in CHINESE else "basic"


def language_code(language: str) -> str:
    """Return the ISO 639 code of a language without its script or region: `zh` for `zh-CN`, `zh_Hant` and `cmn`."""
    code = re.split(r"[-_]", language.strip().lower(), maxsplit=1)[0]
    return _SYNONYMS.get(code, code)


def is_unspaced(language: str) -> bool:
    """Return whether a language is written without spaces between words, so that it is scored by characters."""
    return language_code(language) in UNSPACED


def of_language(normalize: Normalizer, language: str) -> Normalizer:
    """Return the text normaliser for texts in a language; it differs from `normalize` only for `by_language`."""
    return normalize.of(language) if isinstance(normalize, NormalizerByLanguage) else normalize


_MAKERS: dict[str, Callable[[], Normalizer]] = {
    "english": english,
    "plain": lambda: plain,
    "basic": basic,
    "chinese": chinese,
    "by_language": NormalizerByLanguage,
}


@functools.cache
def _shared(name: str) -> Normalizer:
    return normalizer(name)


def normalizer_version(name: str) -> str:
    """Return a text normaliser's name with the versions on which its output depends.

    Figures of different versions may not be comparable.
    """
    if name == "plain":
        return f"plain (omnikit {__version__}, revision {REVISION}, Unicode {unicodedata.unidata_version})"
    versions = [f"openai-whisper {metadata.version('openai-whisper')}"]
    if name in ("chinese", "by_language"):
        versions += [f"cn2an {found}" for found in (_version("cn2an"),) if found]
    return f"{name} ({', '.join(versions)})"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def normalizer(name: str) -> Normalizer:
    """Return the text normaliser of a name: `english`, `plain`, `basic`, `chinese` or `by_language`.

    Raises:
        ValueError: the name is unknown, or a package that it needs is not installed.
    """
    if name not in _MAKERS:
        raise ValueError(f"--normalizer {name}: no such normalizer (choices: {', '.join(_MAKERS)})")
    return _MAKERS[name]()
