"""How two texts are brought to one spelling before they are compared."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import metadata

from omnikit import __version__

Normalizer = Callable[[str], str]


def plain(text: str) -> str:
    """Lower case, no punctuation but apostrophes, single spaces. Every word stays a word."""
    return " ".join(re.sub(r"[^\w\s']|_", " ", text.lower()).split())


def english() -> Normalizer:
    """Whisper's English normaliser: spellings, contractions, and numbers as digits.

    It joins neighbouring number words (`one two three` becomes `123`, one word), so lists of numbers are better scored
    with `plain`.
    """
    from whisper.normalizers import EnglishTextNormalizer  # takes seconds to import

    return EnglishTextNormalizer()


_MAKERS: dict[str, Callable[[], Normalizer]] = {"english": english, "plain": lambda: plain}


def normalizer_version(name: str) -> str:
    """A normaliser and the version of what decides about it: figures of two versions need not be the same."""
    decides = f"omnikit {__version__}" if name == "plain" else f"openai-whisper {metadata.version('openai-whisper')}"
    return f"{name} ({decides})"


def normalizer(name: str) -> Normalizer:
    """The normaliser of that name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in _MAKERS:
        raise ValueError(f"--normalizer {name}: no such normalizer (choices: {', '.join(_MAKERS)})")
    return _MAKERS[name]()
