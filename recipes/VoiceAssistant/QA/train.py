"""Train one stage: `python train.py hparams/stageN.yaml --data_folder DIR`.

Every stage is this script with another YAML file: which parts train, on which tasks, from which folder it starts.
A killed run goes on where it was when started again with the same command.
"""

from __future__ import annotations

from omnikit.errors import bad_input_exits
from omnikit.train.run import main

if __name__ == "__main__":
    with bad_input_exits():
        main()
