"""Train on strings of digits: `python train.py hparams/train.yaml --data_folder DIR --held_out george`.

The script is that of LibriSpeech/ASR, with its loop, loss and data; what differs stands in hparams/train.yaml.
"""

from __future__ import annotations

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "LibriSpeech" / "ASR" / "train.py"), run_name="__main__")
