"""Collection of the deprecation warnings of Python and of transformers' loggers, each with the package that caused it.
"""

from __future__ import annotations

import logging
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE = tuple(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
LIBRARIES = {"torch", "transformers", "huggingface_hub", "safetensors", "tokenizers", "peft", "accelerate"}
LOGGERS = ("transformers", "huggingface_hub")
KINDS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


@dataclass(frozen=True)
class Deprecation:
    """One use of a feature that a library in `LIBRARIES` has deprecated: the warning, the using package and the line.
    """

    message: str
    caller: str  # the package that used it; empty for this repository
    place: str  # file and line


def package(file: str) -> str | None:
    """Return the package that a Python file belongs to: "" for this repository, None for Python's standard library."""
    path = Path(file)
    for site in SITE:
        if path.is_relative_to(site):
            return path.relative_to(site).parts[0].removesuffix(".py")
    return "" if path.is_relative_to(ROOT) or file == "<string>" else None


def judged(message: str, stack: traceback.StackSummary) -> Deprecation | None:
    """Return the deprecation that a warning or log line reports; None if it is not about a library in `LIBRARIES`.

    Args:
        message: text of the warning or log line.
        stack: calls at whose end it was issued.
    """
    frames = [(package(frame.filename), frame) for frame in reversed(stack) if frame.filename != __file__]
    frames = [(name, frame) for name, frame in frames if name is not None]
    if not frames or frames[0][0] not in LIBRARIES:
        return None
    caller, frame = next((each for each in frames if each[0] not in LIBRARIES), frames[-1])
    return Deprecation(" ".join(message.split()), caller, f"{frame.filename}:{frame.lineno}")


class _Handler(logging.Handler):
    def __init__(self, found: list[Deprecation]):
        super().__init__(logging.WARNING)
        self.found = found

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecat" in message.lower() and (found := judged(message, traceback.extract_stack())):
            self.found.append(found)


@contextmanager
def deprecations() -> Iterator[list[Deprecation]]:
    """Context manager that yields a list of all uses of deprecated features inside the `with` block, repeats included.
    """
    found: list[Deprecation] = []

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        text = str(message)
        if issubclass(category, KINDS) or "deprecat" in text.lower():
            used = judged(text, traceback.extract_stack())
            found.extend([used] if used else [])

    handler = _Handler(found)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        for name in LOGGERS:
            logging.getLogger(name).addHandler(handler)
        try:
            yield found
        finally:
            for name in LOGGERS:
                logging.getLogger(name).removeHandler(handler)
