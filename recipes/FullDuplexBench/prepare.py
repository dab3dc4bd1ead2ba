"""Prepares Full-Duplex-Bench, version 1, for evaluate.py.

    python prepare.py --data_folder /data/v1_0 --save_folder data

The data folder has the sets as they are published, such as `candor_turn_taking/<ID>/input.wav` and `turn_taking.json`.
"""

from __future__ import annotations

from omnikit.errors import bad_input_exits
from omnikit.evaluate.suites.fullduplex import FullDuplexBench
from omnikit.evaluate.suites.run import prepare

if __name__ == "__main__":
    with bad_input_exits():
        prepare(FullDuplexBench(), __doc__)
