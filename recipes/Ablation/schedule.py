"""Runs the trainings and evaluations of an ablation study as processes, and records on disk which are done."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grid import Preparation
from plan import Run, ScriptCall

from omnikit.files import write_json
from omnikit.hparams.yaml_tree import read_tree_text

POLL = 0.2
"""Interval in seconds at which the running processes are polled."""
PATIENCE = 10
"""Seconds between terminating a process and killing it."""
LAST_LINES = 5
"""Number of last lines of its log that are recorded for a failed training or evaluation."""


class RunRecord:
    """The record of a run in its `run.json`: settings, status and duration of each training and evaluation."""

    def __init__(self, run: Run):
        self.run, self.path = run, run.folder / "run.json"
        self.steps: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self.steps = json.loads(self.path.read_text(encoding="utf-8"))["steps"]

    def check(self) -> None:
        """Raise an error if a training that would be resumed was started with other settings.

        Evaluations are not checked, since they are run again if their settings have changed.

        Raises:
            ValueError: the settings of a training differ; the message names the keys.
        """
        for step in self.run.steps:
            old = self.steps.get(step.name)
            if not step.trains or old is None or not _has_checkpoint(step):
                continue
            if differing := _differing(old["settings"], step.settings):
                raise ValueError(
                    f"{step.folder}: was trained with other settings ({', '.join(differing)}); remove {self.run.folder}"
                    " or choose another --output_folder"
                )

    def left(self) -> list[ScriptCall]:
        """Return the trainings and evaluations that are not done, and all that follow a training that is not done."""
        steps = self.run.steps
        first = next((i for i, step in enumerate(steps) if step.trains and not self._done(step)), len(steps))
        return [step for i, step in enumerate(steps) if i >= first or not self._done(step)]

    def failure(self) -> str | None:
        """Return the error of the first failed training or evaluation in one line; None if none has failed."""
        for step in self.run.steps:
            old = self.steps.get(step.name)
            if old is not None and old["status"] not in (0, None):
                last = old["last_lines"][-1] if old["last_lines"] else "it wrote nothing"
                return f"{step.name} ended with status {old['status']}: {last} (log: {log_of(self.run, step)})"
        return None

    def begin(self, step: ScriptCall, jobs: int) -> None:
        old = self.steps.get(step.name)
        resumed = step.trains and old is not None and _has_checkpoint(step)
        if step.trains:  # records of evaluations refer to the previous weights
            self.steps = {name: entry for name, entry in self.steps.items() if entry["trains"] and name != step.name}
        self.steps[step.name] = {
            "status": None, "seconds": None, "last_lines": [], "resumed": resumed, "jobs": jobs,
            "trains": step.trains, "command": " ".join(step.words), "settings": step.settings,
        }  # fmt: skip
        self._write()

    def end(self, step: ScriptCall, status: int, seconds: float) -> None:
        lines = last_lines(log_of(self.run, step)) if status else []
        self.steps[step.name] |= {"status": status, "seconds": round(seconds, 1), "last_lines": lines}
        self._write()

    def _done(self, step: ScriptCall) -> bool:
        old = self.steps.get(step.name)
        return old is not None and old["status"] == 0 and old["settings"] == step.settings and step.folder.is_dir()

    def _write(self) -> None:
        self.run.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"row": self.run.row, "seed": self.run.seed, "steps": self.steps})


def _has_checkpoint(step: ScriptCall) -> bool:
    """Return whether the folder of a training has a checkpoint from which it would be resumed."""
    return any(step.folder.glob("save/CKPT*"))


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the recipe keys and run options that differ between the settings of two trainings or evaluations."""
    if old == new:
        return []
    trees = [read_tree_text(settings["recipe"], "recipe") for settings in (old, new)]
    keys = [key for key in {**trees[0], **trees[1]} if trees[0].get(key) != trees[1].get(key)]
    options = [settings["run_options"] for settings in (old, new)]
    return keys + [key for key in {**options[0], **options[1]} if options[0].get(key) != options[1].get(key)]


def log_of(run: Run, step: ScriptCall) -> Path:
    """Return the path of the log of a training or evaluation; it is beside their folder, which a training replaces."""
    return run.folder / f"{step.folder.name}.log"


def last_lines(log: Path) -> list[str]:
    """Return the last lines of a log; lines end at carriage returns, too, with which progress bars are redrawn."""
    lines = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace"))
    return [line.strip() for line in lines if line.strip()][-LAST_LINES:]


Left = tuple[Run, list[ScriptCall]]
"""A run and its trainings and evaluations that are not finished."""


@dataclass
class _Busy:
    """A running training or evaluation: its process, its run with the unfinished steps, and its starting time."""

    left: Left  # the first step is the running one
    process: subprocess.Popen
    began: float = field(default_factory=time.monotonic)

    @property
    def step(self) -> ScriptCall:
        return self.left[1][0]


class Scheduler:
    """A scheduler that runs the steps (trainings and evaluations) of each run in order and several runs concurrently.

    Steps that measure time run alone.

    Args:
        jobs: maximum number of concurrent runs.
        ended: callback that is called after each step with the run, the step, its exit status, and the number of
            steps that are abandoned because of it.
        keep_open: file descriptors that the processes inherit.
    """

    def __init__(self, jobs: int, ended: Callable[[Run, ScriptCall, int, int], None], keep_open: tuple[int, ...] = ()):
        self.jobs, self.ended, self.keep_open = jobs, ended, keep_open
        self.busy: list[_Busy] = []

    def work(self, runs: list[Run]) -> None:
        """Run the unfinished trainings and evaluations of runs; a run is abandoned when one of them fails."""
        waiting = [(run, steps) for run in runs if (steps := RunRecord(run).left())]
        try:
            while waiting or self.busy:
                while (chosen := next((left for left in waiting if self._may_start(left[1][0])), None)) is not None:
                    waiting.remove(chosen)
                    self.busy.append(self._start(chosen))
                time.sleep(POLL)
                waiting[:0] = self._collect()  # started runs are continued before others are started
        finally:
            self._stop()

    def _may_start(self, step: ScriptCall) -> bool:
        if any(each.step.alone for each in self.busy):
            return False
        return len(self.busy) < (1 if step.alone else self.jobs)

    def _start(self, left: Left) -> _Busy:
        run, (step, *_) = left
        RunRecord(run).begin(step, self.jobs)
        with log_of(run, step).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *step.words], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=self._environment(step), pass_fds=self.keep_open,
            )  # fmt: skip
        return _Busy(left, process)

    def _environment(self, step: ScriptCall) -> dict[str, str]:
        """Return the environment variables of a step; concurrent runs share the cores unless OMP_NUM_THREADS is set."""
        shared = {} if self.jobs == 1 or step.alone else {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // self.jobs))}
        return {**shared, **os.environ}

    def _collect(self) -> list[Left]:
        """Record the processes that have ended, and return their runs with the unfinished trainings and evaluations."""
        ended = [each for each in self.busy if each.process.poll() is not None]
        self.busy = [each for each in self.busy if each not in ended]
        again = []
        for each in ended:
            (run, (step, *rest)), status = each.left, each.process.returncode
            RunRecord(run).end(step, status, time.monotonic() - each.began)
            self.ended(run, step, status, len(rest) if status else 0)
            if rest and not status:
                again.append((run, rest))
        return again

    def _stop(self) -> None:
        """Terminate all running processes, and kill those that do not end in `PATIENCE` seconds."""
        for each in self.busy:
            each.process.terminate()
        for each in self.busy:
            try:
                each.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.process.wait()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Lock a folder against other processes for the duration of a `with` block.

    Processes that are started meanwhile must inherit the yielded file descriptor, so that one that outlives a killed
    `run.py` still holds the lock.

    Raises:
        ValueError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"--output_folder {folder}: in use by another run.py, or by a training that a killed one has left"
            ) from None
        yield file.fileno()


def prepare(name: str, preparation: Preparation, folder: Path) -> None:
    """Run a preparation command if its output file is missing; its output goes to
    `<folder>/prepare_<name>.log`.

    Raises:
        ValueError: the command failed or did not write the file.
    """
    if Path(preparation.makes).exists():
        return
    words = [sys.executable if word == "python" else word for word in preparation.command]
    log = folder / f"prepare_{name}.log"
    print(f"preparing {name} (log: {log})", flush=True)
    with log.open("wb") as output:
        environment = {**os.environ, "PYTHON": sys.executable}  # for shell scripts that call it
        status = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, env=environment).returncode
    if status or not Path(preparation.makes).exists():
        last = (last_lines(log) or ["it wrote nothing"])[-1]
        raise ValueError(f"prepare.{name}: status {status}, {preparation.makes} was not written: {last} (log: {log})")
