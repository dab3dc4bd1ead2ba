"""Evaluates a system on Full-Duplex-Bench, version 1, with the server's session logic on simulated time.

    python evaluate.py hparams/eval.yaml --data_folder data --checkpoint DIR

This writes `fullduplexbench.json`, `fullduplexbench.md` and the outputs that the suite's own scorers read.
"""

from __future__ import annotations

from omnikit.errors import bad_input_exits, missing_package

if __name__ == "__main__":
    with bad_input_exits():
        try:
            from omnikit.evaluate.suites.fullduplex_run import evaluate
        except ModuleNotFoundError as error:  # the session logic is that of the server, an extra
            raise ValueError(f"simulated sessions: {missing_package(error.name)}") from None
        evaluate()
