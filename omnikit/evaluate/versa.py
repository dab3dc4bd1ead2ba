"""Files of VERSA, a toolkit with many metrics of generated speech: its input is written and its results are read.

VERSA (wavlab-speech/versa at c398480, MIT) is installed and run on its own, see docs/evaluate.md. Its scorer reads
`wav.scp` and `text` with a key and a value in each line, and writes a line of JSON for each utterance.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from omnikit.files import make_folder, read_text, write_text

WAVS, TEXTS = "wav.scp", "text"
"""Names of VERSA's input files: paths of the recordings, and the texts that they should say."""
ENDINGS = (".jsonl", ".json", ".txt")
"""Endings of result files; VERSA's own scripts call them `*.result.cpu.txt` and `*.result.gpu.txt`."""
_KEY = "key"
_COUNT = re.compile(r"(.+_[wcp]er)_(delete|insert|replace|equal)")
"""Regular expression of the counts from which a word, character or phoneme error rate is computed."""
_LOWER = re.compile(r"[wcp]er$|^mcd|rmse|distance|warpq|rtf")
"""Regular expression of metrics that are better if they are lower; all others count as better if higher."""
_ALONE = re.compile(r"(?<=[\s:,\[])(-?)(inf|nan)(?=[\s,}\]])")
"""Regular expression of `inf` and `nan`, which neither JSON nor a Python literal has."""


@dataclass(frozen=True)
class SpokenAnswer:
    """The recording of generated speech, and the text that it should say."""

    id: str
    wav: Path
    text: str


@dataclass(frozen=True)
class VersaScore:
    """A metric of VERSA over several utterances: the mean, or an error rate in percent over all of them."""

    value: float
    utterances: int
    """Number of utterances with a finite value."""
    better: str
    """Which values are better, `higher` or `lower`."""


def versa_key(name: str) -> str:
    """Return the key of an utterance in VERSA's files: its id, in which spaces and `%` are escaped as in addresses."""
    return quote(name, safe="".join(char for char in map(chr, range(33, 127)) if char != "%"))


def write_versa(folder: Path, utterances: Iterable[SpokenAnswer]) -> int:
    """Write `wav.scp` and `text` of generated speech to a folder, and return the number of utterances.

    Utterances without words in their text are left out, since VERSA's scorer stops at them.

    Raises:
        ValueError: two utterances have the same id, or the folder cannot be written.
    """
    wavs, texts = {}, {}
    for each in utterances:
        key, text = versa_key(each.id), " ".join(each.text.split())
        if key in wavs:
            raise ValueError(f"{folder}: two utterances have the id {each.id!r}")
        if text:
            wavs[key], texts[key] = str(each.wav.absolute()), text
    make_folder(folder)
    for name, values in ((WAVS, wavs), (TEXTS, texts)):
        write_text(folder / name, "".join(f"{key} {value}\n" for key, value in values.items()))
    return len(wavs)


def read_versa(path: Path) -> dict[str, dict[str, float]]:
    """Return the numbers that VERSA has written for each utterance, by key and name of the metric.

    Args:
        path: file of results, or a folder whose files of results, such as those for CPU and GPU, are put together.

    Raises:
        ValueError: there is no such file, or a line of it is no result of VERSA.
    """
    files = sorted(each for each in path.iterdir() if each.suffix in ENDINGS) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        wanted = f"no {', '.join(f'*{ending}' for ending in ENDINGS)} there" if path.is_dir() else "no such file"
        raise ValueError(f"--versa {path}: {wanted}; give the --output_file of VERSA's scorer")
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for file in files:
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if line.strip():
                result = _parsed(line, f"--versa {file}: line {number}")
                scores[str(result.pop(_KEY))].update(_numbers(result))
    return dict(scores)


def _parsed(line: str, where: str) -> dict[str, Any]:
    """Return a line of results, which is JSON, or, in files of VERSA's older scripts, a dictionary of Python."""
    try:
        found = json.loads(line)
    except ValueError:
        try:
            found = ast.literal_eval(_ALONE.sub(r"\g<1>1e999", line.strip()))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = None
    if not isinstance(found, dict) or _KEY not in found:
        raise ValueError(f"{where} is no result of VERSA, which has a {_KEY!r}")
    return found


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in a result; texts, such as a recogniser's transcript, and failed metrics are left out."""
    return {
        name: float(value)
        for name, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def versa_scores(results: Sequence[Mapping[str, float]]) -> dict[str, VersaScore]:
    """Return the means of VERSA's metrics over utterances by name, in the order in which they occur.

    Counts of deleted, inserted, replaced and equal words become one error rate over all utterances, in percent.
    """
    columns: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for name, value in result.items():
            columns[name].append(value)
    found = {}
    for name, values in columns.items():
        if counted := _COUNT.fullmatch(name):
            found.setdefault(f"{counted[1]} %", None)
        elif finite := [value for value in values if math.isfinite(value)]:
            found[name] = VersaScore(fmean(finite), len(finite), _better(name))
    rates = {name: _error_rate(name.removesuffix(" %"), columns) for name, score in found.items() if score is None}
    return {name: score or rates[name] for name, score in found.items() if score or rates[name]}


def _error_rate(name: str, columns: Mapping[str, Sequence[float]]) -> VersaScore | None:
    """Return the error rate of the counts `<name>_delete` and so on; None if the references have no words."""
    count = {kind: sum(columns.get(f"{name}_{kind}", ())) for kind in ("delete", "insert", "replace", "equal")}
    words = count["delete"] + count["replace"] + count["equal"]
    errors = count["delete"] + count["insert"] + count["replace"]
    utterances = len(columns.get(f"{name}_equal", ()))
    return VersaScore(100 * errors / words, utterances, _better(name)) if words else None


def _better(name: str) -> str:
    return "lower" if _LOWER.search(name) else "higher"
