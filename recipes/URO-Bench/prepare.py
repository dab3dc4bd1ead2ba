"""Prepares URO-Bench for evaluate.py.

    python prepare.py --data_folder /data/URO-Bench-data --save_folder data

The data folder is the archive of Honggao/URO-Bench on the hub, unpacked: `<level>/<set>/test.jsonl` with recordings.
"""

from __future__ import annotations

from omnikit.errors import bad_input_exits
from omnikit.evaluate.suites.run import prepare
from omnikit.evaluate.suites.urobench import UROBench

if __name__ == "__main__":
    with bad_input_exits():
        prepare(UROBench(), __doc__)
