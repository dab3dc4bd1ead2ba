"""Prepares VoiceBench for evaluate.py.

    python prepare.py --data_folder /data/voicebench --save_folder data
    python prepare.py --data_folder hlt-lab/voicebench --save_folder data

The data folder has `<subset>/<split>-<number>-of-<number>.parquet` for one or more of the subsets.
"""

from __future__ import annotations

from omnikit.errors import bad_input_exits
from omnikit.evaluate.suites.run import prepare
from omnikit.evaluate.suites.voicebench import VoiceBench

if __name__ == "__main__":
    with bad_input_exits():
        prepare(VoiceBench(), __doc__)
