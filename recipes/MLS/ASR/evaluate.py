"""Computes error rates on the splits of Multilingual LibriSpeech.

    python evaluate.py hparams/eval.yaml --checkpoint DIR --data_folder DIR --splits [german-test,polish-test]
    python evaluate.py hparams/eval.yaml --baseline whisper_small --data_folder DIR

This writes the files of `recipes/LibriSpeech/ASR/evaluate.py`. Texts are normalised by the language that the manifest
names, and a recogniser is told it.
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
