"""Training by two processes of which the second stops in its second step; also a script, `stuck.py FOLDER HOW MINUTES`.

HOW is `sleep`, `die` or `freeze`; MINUTES is the time after which a process that stands still ends the training. The
time at which it stops is written to FOLDER.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from omnikit.data.collate import Batch
from omnikit.torchrun import Share
from omnikit.train.process_group import start_processes
from tests.unit.faulty_runs import batches, brain_of, loader


def stop(how: str) -> None:
    if how == "sleep":
        time.sleep(600)
    if how == "die":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGSTOP)


def main(folder: Path, how: str, minutes: float) -> None:
    start_processes("gloo", minutes)
    brain = brain_of(folder, 1)
    brain.hparams.hang_timeout = minutes
    begin = brain.on_fit_batch_start

    def stopping(batch: Batch, should_step: bool) -> None:
        begin(batch, should_step)
        if brain.step == 2 and Share.of_torchrun().rank == 1:
            (folder / "stopped").write_text(str(time.monotonic()))
            stop(how)

    brain.on_fit_batch_start = stopping
    brain.fit(brain.hparams.epochs, loader(batches(brain.model, "train")), None, progressbar=False)


def run_share(folder: Path, begun: Connection, environment: dict[str, str]) -> None:
    """Train as one of two processes, whose stderr is a file named by its rank; called by `rewriting.run_by_two`."""
    os.environ.update(environment)
    begun.send(None)
    os.dup2(os.open(folder / f"{environment['RANK']}.txt", os.O_WRONLY | os.O_CREAT), 2)
    main(folder, "sleep", 0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
