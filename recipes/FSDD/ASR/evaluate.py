"""Computes the word error rate of each speaker on digit strings, which are made from a folder of recordings.

    python evaluate.py hparams/eval.yaml --checkpoint DIR --data_folder DIR --speakers george

This writes `asr.json`, `asr.md`, and for each speaker `hypotheses_test-<speaker>.jsonl` and `wer_test-<speaker>.txt`
(alignments). The table also has the means over speakers, of all strings and of single digits. `--checkpoint
mini_whisper` scores the shipped system with Whisper base, which was trained on none of these voices.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omnikit.errors import bad_input_exits
from omnikit.evaluate.asr_command import main

sys.path.append(str(Path(__file__).resolve().parents[1]))
from prepare import CORPUS, TEST, check_speakers, speakers


def splits(hparams: dict[str, Any]) -> list[str]:
    """Return the names of the test splits of the speakers to score: one name, a list of names, or None for all."""
    wanted, folder = hparams["speakers"], hparams["data_folder"]
    if wanted is None:
        wanted = speakers(folder)
    names = [str(name) for name in (wanted if isinstance(wanted, list) else [wanted])]
    check_speakers("speakers", names, folder)
    return [f"{TEST}{name}" for name in names]


if __name__ == "__main__":
    with bad_input_exits():
        main(CORPUS, splits, mean_over="speakers")
