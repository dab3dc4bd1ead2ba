"""Evaluates a system on Big Bench Audio, asked and answered in text and speech.

    python evaluate.py hparams/eval.yaml --data_folder data --checkpoint DIR

This writes `bigbenchaudio.json`, `bigbenchaudio.md` and the answers.
"""

from __future__ import annotations

from pathlib import Path

from omnikit.errors import bad_input_exits
from omnikit.evaluate.suites.big_bench_audio import BigBenchAudio
from omnikit.evaluate.suites.run import evaluate

if __name__ == "__main__":
    with bad_input_exits():
        evaluate(BigBenchAudio(Path(__file__).parent / "prompts"))
