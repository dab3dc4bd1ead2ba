"""Train speech recognition on strings of digits without one speaker.

    python train.py hparams/train.yaml --data_folder DIR --held_out george

This runs the script of LibriSpeech/ASR, with its loop, loss and data pipeline; hparams/train.yaml has the differences.
"""

from __future__ import annotations

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "LibriSpeech" / "ASR" / "train.py"), run_name="__main__")
