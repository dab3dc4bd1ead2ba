"""Instruction following by rule (IFEval, arXiv 2311.07911), with the checks of an optional package.

An answer follows an instruction strictly if the check accepts it as it is, and loosely if the check accepts it without
asterisks, or without its first or last line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from typing import Any

PACKAGE = "lm_eval"
"""Package with the checks of IFEval's authors; `pip install 'omnikit[ifeval]'` installs it."""
Instructions = Mapping[str, Callable[[str], Any]]
"""Mapping from the id of an instruction to the class that checks it."""


class NoData(ValueError):
    """Error raised when the checks lack data that their package downloads when it is imported."""


@dataclass(frozen=True)
class Instruction:
    """Instructions of a question, which are checked by `followed`."""

    ids: Sequence[str]
    """Ids of the instructions, such as `punctuation:no_comma`."""
    options: Sequence[Mapping[str, Any]]
    """Options of each instruction; those that are empty count as absent."""
    prompt: str
    """Text of the question."""


def load_instructions() -> Instructions:
    """Return the checks of all instructions; languages are detected with a fixed seed.

    Raises:
        ImportError: the package, or something that it needs, is not installed.
    """
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    _fix_seed_of_languages()
    return INSTRUCTION_DICT


def version() -> str | None:
    """Return name and version of the package of checks; None if it is not installed."""
    try:
        return f"{PACKAGE} {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError:
        return None


def _fix_seed_of_languages() -> None:
    """Let langdetect, which samples, find the same language of a text each time."""
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0


def followed(question: Instruction, response: str, instructions: Instructions, *, loosely: bool) -> list[bool]:
    """Return for each instruction of a question whether an answer follows it.

    Raises:
        ValueError: an instruction is unknown.
        NoData: a check needs NLTK's division into sentences, which is not on this machine.
    """
    texts = [text for text in (_variants(response) if loosely else [response]) if text.strip()]
    found = []
    for name, options in zip(question.ids, question.options, strict=True):
        if name not in instructions:
            raise ValueError(f"instruction {name!r}: unknown to {PACKAGE} (choices: {', '.join(sorted(instructions))})")
        check = instructions[name](name)
        check.build_description(**{key: value for key, value in options.items() if value})
        if "prompt" in (check.get_instruction_args() or {}):
            check.build_description(prompt=question.prompt)
        found.append(_accepts_any(check, texts))
    return found


def _accepts_any(check: Any, texts: Sequence[str]) -> bool:
    try:
        return any(check.check_following(text) for text in texts)
    except LookupError as error:
        if type(error) is not LookupError:  # as NLTK raises it; a key or an index is another error
            raise
        raise NoData("needs NLTK's punkt_tab: python -m nltk.downloader punkt_tab") from None


def _variants(response: str) -> list[str]:
    """Return an answer with and without its asterisks, and each of them without first line, last line, or both."""
    lines = response.split("\n")
    cuts = [lines, lines[1:], lines[:-1], lines[1:-1]]
    texts = [response] + ["\n".join(cut).strip() for cut in cuts[1:]]
    return [text.replace("*", "") if plain else text for plain, text in product((False, True), texts)]


def shares(results: Sequence[Sequence[bool]]) -> tuple[float, float]:
    """Return the percentages of questions whose instructions are all followed, and of instructions that are."""
    flat = [each for result in results for each in result]
    return 100 * sum(map(all, results)) / len(results), 100 * sum(flat) / len(flat)
