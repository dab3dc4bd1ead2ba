"""Outputs of a recogniser or a predictor about each spoken answer, stored in files beside the answers.

A line belongs to the bytes of its recording: another answer to the same question is measured again, and nothing else
is. Each of several processes measures its share and writes its own file.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from omnikit.audio.io import load_source
from omnikit.errors import writing
from omnikit.evaluate.suites.items import SuiteItem
from omnikit.files import write_bytes
from omnikit.offline.batch_inference import read_results
from omnikit.torchrun import Share

RATE = 16000
"""Sample rate in Hz at which spoken answers are measured."""
POLL = 1.0
"""Seconds between looks at the results of other processes."""
Measure = Callable[[Tensor, int, str], Any]
"""A function from a waveform [N], its rate in Hz and its language to what is stored, a text or a number."""


class StoredOutputs:
    """Stored outputs of one recogniser or predictor about the spoken answers of one task.

    Args:
        folder: folder of the answers.
        kind: what the outputs are, such as `transcripts`: the beginning of the files' names.
        name: name of the recogniser or predictor with its weights; outputs of others are in other files.
    """

    def __init__(self, folder: Path, kind: str, name: str):
        self.folder, self.kind, self.share = folder, kind, Share.of_torchrun()
        safe = re.sub(r"[^\w.-]+", "_", name)[-60:]
        self.stem = f"{kind}.{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def make(self, opened: Callable[[], Measure], items: Sequence[SuiteItem]) -> None:
        """Measure this process's share of the spoken answers that have no stored output.

        Args:
            opened: function that loads the recogniser or predictor; not called if there is nothing to measure.
            items: questions, to which all processes have stored their answers.

        Raises:
            ValueError: a recording cannot be read, or the files cannot be written.
        """
        languages = {item.id: item.language for item in items}
        stored, own = self._stored(), list(self._wavs(items).items())[self.share.rank :: self.share.processes]
        missing = [(name, wav, digest) for name, (wav, digest) in own if (name, digest) not in stored]
        if not missing:
            return
        measure = opened()
        self._repair()
        for name, wav, digest in tqdm(missing, desc=self.kind, dynamic_ncols=True, disable=self.share.rank > 0):
            found = measure(load_source(str(wav), str(wav), RATE), RATE, languages[name])
            self._write({"id": name, "wav": digest, "output": found})

    def wait(self, items: Sequence[SuiteItem]) -> dict[str, Any]:
        """Wait until all processes have measured their share, and return the outputs by id of the question.

        Raises:
            ValueError: an answer has changed since it was measured.
        """
        wavs = self._wavs(items)
        while True:
            stored = self._stored()
            missing = [name for name, (_, digest) in wavs.items() if (name, digest) not in stored]
            if not missing:
                return {name: stored[name, digest] for name, (_, digest) in wavs.items()}
            if self.share.processes == 1:
                raise ValueError(f"{self.folder}: the answer to {missing[0]} has changed meanwhile; start again")
            time.sleep(POLL)

    @property
    def _own_file(self) -> Path:
        return self.folder / (f"{self.stem}.{self.share.rank}.jsonl" if self.share.rank else f"{self.stem}.jsonl")

    def _wavs(self, items: Sequence[SuiteItem]) -> dict[str, tuple[Path, str]]:
        """Return path and digest of the spoken answers by id of the question, in the order of the questions."""
        lines = read_results(self.folder)
        named = {item.id: lines[item.id]["wav"] for item in items if item.id in lines}
        paths = {name: self.folder / wav for name, wav in named.items() if wav is not None}
        return {name: (path, hashlib.sha256(path.read_bytes()).hexdigest()[:16]) for name, path in paths.items()}

    def _stored(self) -> dict[tuple[str, str], Any]:
        files = sorted(self.folder.glob(f"{self.stem}*.jsonl"))
        return {(line["id"], line["wav"]): line["output"] for path in files for line, _ in _whole_lines(path)}

    def _repair(self) -> None:
        """Remove a truncated last line, which a killed process has left, from this process's file."""
        if self._own_file.is_file():
            write_bytes(self._own_file, b"".join(text for _, text in _whole_lines(self._own_file)))

    def _write(self, line: Mapping[str, Any]) -> None:
        with writing(self._own_file), self._own_file.open("ab") as file:
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def _whole_lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the lines of a file of outputs, parsed and as they are, without a last one that is truncated.

    Raises:
        ValueError: another line is no output.
    """
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not text.endswith(b"\n"):
            return
        try:
            line = json.loads(text)
            complete = {"id", "wav", "output"} <= line.keys()
        except (ValueError, AttributeError):
            complete = False
        if not complete:
            raise ValueError(f"{path}: line {number} is not one of this command")
        yield line, text
