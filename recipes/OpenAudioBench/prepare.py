"""Prepares OpenAudioBench for evaluate.py.

    python prepare.py --data_folder /data/OpenAudioBench --save_folder data
    python prepare.py --data_folder baichuan-inc/OpenAudioBench --save_folder data

The data folder has `eval_datas/<set>/<set>.csv` and `eval_datas/<set>/audios/` for one or more of the sets.
"""

from __future__ import annotations

from omnikit.errors import bad_input_exits
from omnikit.evaluate.suites.openaudiobench import OpenAudioBench
from omnikit.evaluate.suites.run import prepare

if __name__ == "__main__":
    with bad_input_exits():
        prepare(OpenAudioBench(), __doc__)
