"""Outputs of a recogniser or a predictor about each spoken answer, stored in files beside the answers.

A line belongs to the bytes of its recording: another answer to the same question is measured again, and nothing else
is. Each of several processes measures its share and writes its own file.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from omnikit.audio.io import load_source
from omnikit.evaluate.suites.items import SuiteItem
from omnikit.files import append_line, appended_lines, remove_truncated_line
from omnikit.offline.batch_inference import read_results
from omnikit.torchrun import Share

RATE = 16000
"""Sample rate in Hz at which spoken answers are measured."""
POLL = 1.0
"""Seconds between looks at the results of other processes."""
KEYS = ("id", "wav", "output")
"""Keys of a stored output: id of the question, digest of the recording, and what is stored."""
Measure = Callable[[Tensor, int, str], Any]
"""A function from a waveform [N], its rate in Hz and its language to what is stored, a text or a number."""


class StoredOutputs:
    """Files with the transcripts or ratings of the spoken answers of one task by one recogniser or predictor.

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
        """Transcribe or rate those spoken answers in this process's share that have no stored output yet.

        Args:
            opened: function that loads the recogniser or predictor; not called if there is nothing to measure.
            items: questions, to which all processes have stored their answers.

        Raises:
            ValueError: a recording cannot be read, or the files cannot be written.
        """
        languages = {item.id: item.language for item in items}
        stored, own = self._stored(), list(self._wavs(items).items())[self.share.rank :: self.share.processes]
        digests = [(name, wav, _digest(wav)) for name, wav in own]
        missing = [each for each in digests if (each[0], each[2]) not in stored]
        if not missing:
            return
        measure = opened()
        remove_truncated_line(self._own_file)
        for name, wav, digest in tqdm(missing, desc=self.kind, dynamic_ncols=True, disable=self.share.rank > 0):
            found = measure(load_source(str(wav), str(wav), RATE), RATE, languages[name])
            append_line(self._own_file, {"id": name, "wav": digest, "output": found})

    def wait(self, items: Sequence[SuiteItem]) -> dict[str, Any]:
        """Wait until all processes have measured their share, and return the outputs by id of the question.

        Raises:
            ValueError: an answer has changed since it was measured.
        """
        digests = {name: _digest(wav) for name, wav in self._wavs(items).items()}
        while True:
            stored = self._stored()
            missing = [name for name, digest in digests.items() if (name, digest) not in stored]
            if not missing:
                return {name: stored[name, digest] for name, digest in digests.items()}
            if self.share.processes == 1:
                raise ValueError(f"{self.folder}: the answer to {missing[0]} has changed meanwhile; start again")
            time.sleep(POLL)

    @property
    def _own_file(self) -> Path:
        return self.folder / (f"{self.stem}.{self.share.rank}.jsonl" if self.share.rank else f"{self.stem}.jsonl")

    def _wavs(self, items: Sequence[SuiteItem]) -> dict[str, Path]:
        """Return the paths of the spoken answers by id of the question, in the order of the questions."""
        lines = read_results(self.folder)
        named = {item.id: lines[item.id]["wav"] for item in items if item.id in lines}
        return {name: self.folder / wav for name, wav in named.items() if wav is not None}

    def _stored(self) -> dict[tuple[str, str], Any]:
        files = sorted(self.folder.glob(f"{self.stem}*.jsonl"))
        lines = (line for path in files for line, _ in appended_lines(path, KEYS, "is not one of this command"))
        return {(line["id"], line["wav"]): line["output"] for line in lines}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
