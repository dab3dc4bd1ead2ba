"""Processes for tests that kill others or train by two; toy parts and a toy voice for `omnikit tokenize` and others.

The codec and the voice are slow, so that a process can be killed while it works.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import soundfile
import torch
from toy import ToyCodec, ToyEncoder

from omnikit.prepare.synthesize import synthesize
from omnikit.prepare.tokenize import Parts, tokenize
from omnikit.prepare.voices import Voice


class SlowCodec(ToyCodec):
    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        time.sleep(0.004)
        return super().encode(wav)


class Beeps(Voice):
    """A toy speech synthesiser that renders a text as a tone: longer for longer texts, its pitch chosen by the seed.

    It refuses texts with "§".
    """

    sample_rate = 8000

    def synthesize(self, text: str, seed: int | None = None, language: str = "") -> np.ndarray:
        if "§" in text:
            raise ValueError("unknown")
        time.sleep(0.004)
        pitch = 200 if seed is None else 300 + seed % 500
        return 0.5 * np.sin(np.arange(400 * len(text)) * 2 * np.pi * pitch / self.sample_rate)


def sound(seconds: float, seed: int = 0) -> bytes:
    """Return the bytes of a WAV file of noise at 16 kHz."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(seed).uniform(-0.3, 0.3, int(16000 * seconds)), 16000, format="WAV")
    return buffer.getvalue()


def toy_parts() -> Parts:
    torch.manual_seed(0)
    return Parts(SlowCodec(), "toy", ToyEncoder())


def run_tokenize(manifest: Path, save_folder: Path, begun: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    parts = toy_parts()
    begun.send(None)
    tokenize(manifest, save_folder, parts, fields=("a1",), shard_size=4)


def run_synthesize(manifest: Path, save_folder: Path, begun: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    begun.send(None)
    synthesize(manifest, save_folder, Beeps(), voice_name="beeps", shard_size=4)


def start(run: Callable, *folders: Path, **environment: str) -> multiprocessing.Process:
    """Start a function such as `run_tokenize` in a process, and return the process once the function has begun.

    Most imports are loaded once for all processes.
    """
    context = multiprocessing.get_context("forkserver")
    loaded = ["omnikit.prepare.tokenize", "omnikit.train.brain", "transformers.models.qwen2.modeling_qwen2"]
    context.set_forkserver_preload(loaded)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(*folders, sender, environment), daemon=True)
    process.start()
    sender.close()
    receiver.recv()
    return process


def run_by_two(run: Callable, *folders: Path) -> list[int]:
    """Run a function such as `faulty_runs.run_share` in two processes that train together, until both have ended.

    Their environment is that of torchrun.

    Returns:
        The exit status of each process.
    """
    with socket.create_server(("127.0.0.1", 0)) as found:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(found.getsockname()[1])}
    ranks = [{"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    processes = [start(run, *folders, **meeting, **rank) for rank in ranks]
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def killed_at_random(run: Callable, manifest: Path, whole: Path, killed: Path) -> int:
    """Write the same output twice: without interruption, and by ten processes that are killed and one that completes.

    The output folders are `whole` and `killed`. Processes are killed by SIGKILL at random times.

    Returns:
        The number of processes that were still running when they were killed.
    """
    process = start(run, manifest, whole)
    began = time.monotonic()
    process.join()
    moments, at_work = np.random.default_rng(0).uniform(0, (time.monotonic() - began) / 4, 10), 0
    for moment in moments:
        process = start(run, manifest, killed)
        time.sleep(moment)
        at_work += process.is_alive()
        process.kill()
        process.join()
    last = start(run, manifest, killed)
    last.join()
    assert last.exitcode == 0
    return at_work


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
