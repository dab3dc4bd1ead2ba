"""Script that trains briefly, saves checkpoints and is killed at random moments: `saver.py FOLDER KILLS SEED`.

Each child process resumes from the newest checkpoint, checks that all objects in it are of one save, and saves in a
loop until it is killed. The parent prints, for each child, how many saves it had announced and where the next one
began; those must not be fewer.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from speechbrain.utils.epoch_loop import EpochCounter

from omnikit.train.checkpointer import WholeCheckpointer

WEIGHTS = 100_000


def save_until_killed(folder: Path, out: int) -> None:
    model, counter = torch.nn.Linear(WEIGHTS, 1, bias=False), EpochCounter(10**9)
    checkpointer = WholeCheckpointer(folder, {"model": model, "epochs": counter})
    found = checkpointer.recover_if_possible()
    begin = counter.current if found is not None else 0
    if found is not None:
        assert bool((model.weight == begin).all()), "weights of another save"
    os.write(out, f"began {begin}\n".encode())
    while True:
        counter.current += 1
        with torch.no_grad():
            model.weight.fill_(counter.current)
        if counter.current % 2:
            checkpointer.save_and_keep_only()
            os.write(out, f"saved {counter.current}\n".encode())
        else:
            checkpointer.save_and_keep_only(aside=True)  # and train on: the next weights must not get into it


def killed_child(folder: Path, wait: float) -> list[tuple[str, int]]:
    """Start a process that saves checkpoints, kill it `wait` seconds after its first message; return its messages."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_until_killed(folder, write)
        finally:
            os._exit(1)
    os.close(write)
    text = os.read(read, 1 << 16)
    time.sleep(wait)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "a child failed by itself"
    while more := os.read(read, 1 << 16):
        text += more
    os.close(read)
    return [(word, int(number)) for word, number in (line.split() for line in text.decode().splitlines())]


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    rng, announced = random.Random(seed), 0
    for _ in range(kills):
        messages = killed_child(folder, rng.uniform(0, 0.15))
        begins = messages[0][1]
        print(announced, begins, *(path.name for path in sorted(folder.glob("unfinished-*"))))
        assert begins >= announced, f"{announced} saves were announced, and the next run began at {begins}"
        announced = messages[-1][1]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
