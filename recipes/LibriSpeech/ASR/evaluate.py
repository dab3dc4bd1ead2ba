"""Computes the word error rate on the splits of LibriSpeech, or of a corpus with the same layout.

    python evaluate.py hparams/eval.yaml --checkpoint DIR --data_folder DIR
    python evaluate.py hparams/eval.yaml --baseline whisper_small --data_folder DIR

This writes `asr.json`, `asr.md`, and for each split `hypotheses_<split>.jsonl` and `wer_<split>.txt` (alignments). The
command is `omnikit.evaluate.asr_command`; the rates are computed by `omnikit.evaluate.wer.score`.
"""

from __future__ import annotations

import sys
from operator import itemgetter
from pathlib import Path

from omnikit.errors import bad_input_exits
from omnikit.evaluate.asr_command import main

sys.path.append(str(Path(__file__).resolve().parents[1]))
from prepare import CORPUS

if __name__ == "__main__":
    with bad_input_exits():
        main(CORPUS, itemgetter("splits"))
