"""Train speech recognition alone: `python train.py hparams/train.yaml --data_folder DIR`.

A killed run goes on where it was when started again with the same command.
"""

from __future__ import annotations

from omnikit.errors import bad_input_exits
from omnikit.train.run import main

if __name__ == "__main__":
    with bad_input_exits():
        main()
