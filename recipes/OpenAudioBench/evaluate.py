"""Evaluates a system on OpenAudioBench, asked and answered in text and speech.

    python evaluate.py hparams/eval.yaml --data_folder data --checkpoint DIR

This writes `openaudiobench.json` and `openaudiobench.md`, the answers, and files for other scorers in `official/`.
"""

from __future__ import annotations

from pathlib import Path

from omnikit.errors import bad_input_exits
from omnikit.evaluate.suites.openaudiobench import OpenAudioBench
from omnikit.evaluate.suites.run import evaluate

if __name__ == "__main__":
    with bad_input_exits():
        evaluate(OpenAudioBench(Path(__file__).parent / "prompts"))
