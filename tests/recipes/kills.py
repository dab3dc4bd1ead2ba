"""Script that trains a recipe twice, the second time with kills: `kills.py FOLDER KILLS SEED PROCESSES WORDS..`.

WORDS is the recipe's command line without its output folder: FOLDER/whole of the training that is not disturbed, and
FOLDER/killed of the one that is killed by SIGKILL at random moments and started again each time. The script prints for
each kill the optimiser steps of the checkpoints that are there, and the names of those that were not yet whole.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from importlib import import_module
from pathlib import Path

import torch
import yaml

import omnikit.train.brain
from omnikit.errors import bad_input_exits
from omnikit.train.checkpointer import UNFINISHED
from tests.recipes.trees import RECIPES, load_script

TRAIN = RECIPES / "VoiceAssistant" / "QA" / "train.py"
SECONDS = 250
"""Time limit of one life of a training."""


def start(words: list[str], out: Path, processes: int) -> list[int]:
    """Start the processes of a training, and return their ids."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = []
    for rank in range(processes):
        if not (child := os.fork()):
            ranks = {**shared, "RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
            os.environ.update({key: str(value) for key, value in ranks.items()})
            train(words, out)
        children.append(child)
    return children


def train(words: list[str], out: Path) -> None:
    """Train as a process of its own, whose output is in a file, and end it."""
    status = 1
    try:
        log = os.open(out.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.chdir(TRAIN.parent)
        sys.argv = [TRAIN.name, *words, "--output_folder", str(out)]
        with bad_input_exits():
            recipe.main()
        status = 0
    except SystemExit as end:
        status = end.code or 0
    finally:
        os._exit(status)


def finish(children: list[int], out: Path) -> None:
    """Wait until a training has ended by itself."""
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0, out.with_suffix(".txt").read_text()[-3000:]


def kill(children: list[int], out: Path, rng: random.Random) -> None:
    """Kill a training at a random moment: while it starts, or about when it begins to write or delete a checkpoint."""
    number = rng.randint(0, 3)
    wait = rng.random() * (rng.choice([0.02, 0.1]) if number else 1.5)
    seen, before, end = set(), set(out.glob(f"save/{UNFINISHED}*")), time.monotonic() + SECONDS
    while len(seen) < number:
        seen |= set(out.glob(f"save/{UNFINISHED}*")) - before
        assert time.monotonic() < end and not any(os.waitpid(child, os.WNOHANG)[0] for child in children), (
            out.with_suffix(".txt").read_text()[-3000:]
        )
        time.sleep(0.002)
    time.sleep(wait)
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "a training ended by itself before it was killed"


def stored_steps(out: Path) -> list[int]:
    """Return the number of optimiser steps in each checkpoint."""
    return sorted(yaml.safe_load(path.read_text())["optimizer_step"] for path in out.glob("save/CKPT*/brain.ckpt"))


def main(folder: Path, kills: int, seed: int, processes: int, words: list[str]) -> None:
    finish(start(words, folder / "whole", processes), folder / "whole")
    rng, out = random.Random(seed), folder / "killed"
    for _ in range(kills):
        kill(start(words, out, processes), out, rng)
        print(stored_steps(out), *(path.name for path in sorted(out.glob(f"save/{UNFINISHED}*"))), flush=True)
    finish(start(words, out, processes), out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe = load_script(TRAIN)
    import_module("transformers.models.qwen2.modeling_qwen2")  # once for all lives
    omnikit.train.brain.draw_curves = lambda *_: None  # takes longer than these trainings
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5:])
