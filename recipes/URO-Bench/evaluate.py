"""Evaluates a system on URO-Bench, asked and answered in text and speech.

    python evaluate.py hparams/eval.yaml --data_folder data --checkpoint DIR

This writes `uro-bench.json`, `uro-bench.md`, the answers, and `official/` for the scripts of URO-Bench.
"""

from __future__ import annotations

from pathlib import Path

from omnikit.errors import bad_input_exits
from omnikit.evaluate.suites.run import evaluate
from omnikit.evaluate.suites.urobench import UROBench

if __name__ == "__main__":
    with bad_input_exits():
        evaluate(UROBench(Path(__file__).parent / "prompts"))
