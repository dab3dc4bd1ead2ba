"""Prepares Big Bench Audio for evaluate.py.

    python prepare.py --data_folder /data/big_bench_audio --save_folder data
    python prepare.py --data_folder ArtificialAnalysis/big_bench_audio --save_folder data

The data folder has `metadata.jsonl` and `data/question_<id>.mp3`, or Parquet files with a transcript of each question.
"""

from __future__ import annotations

from omnikit.errors import bad_input_exits
from omnikit.evaluate.suites.big_bench_audio import BigBenchAudio
from omnikit.evaluate.suites.run import prepare

if __name__ == "__main__":
    with bad_input_exits():
        prepare(BigBenchAudio(), __doc__)
