"""Trains and evaluates a grid of systems that differ in one choice each, and tabulates the differences.

    python run.py hparams/ablation.yaml

This writes `table.md`, `table.csv`, `runs.csv`, `figures.png` and `against.png` to the output folder and updates them
after every run. A killed ablation resumes when the same command is given again.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from typing import Any

from grid import Grid, read_grid, slug, some_rows
from metrics import Outcome, outcomes
from plan import Run, ScriptCall, plan_run
from plots import draw_against, draw_figures
from schedule import RunRecord, Scheduler, locked, log_of, prepare
from table import cells, markdown, write_csv, write_runs_csv
from tqdm import tqdm

from omnikit.errors import bad_input_exits
from omnikit.files import write_text
from omnikit.hparams import split_command_line

FAILED = 1
"""Exit status of the program if a run has failed."""


class Ablation:
    """An ablation study with all its runs: those requested now, and those that are in the output folder already."""

    def __init__(self, grid: Grid, rows: list[str], run_options: Mapping[str, Any]):
        self.grid = grid
        self.runs = [
            plan_run(grid, row, seed, run_options)
            for row in grid.rows
            for seed in sorted({*_finished_seeds(grid, row), *(grid.seeds if row in rows else ())})
        ]
        self.wanted = [run for run in self.runs if run.row in rows and run.seed in grid.seeds]
        for run in self.wanted:
            RunRecord(run).check()

    def work(self, lock: int) -> None:
        """Run the unfinished trainings and evaluations of the requested runs; update tables and plots after each run.

        Args:
            lock: file descriptor of the output folder's lock, see `locked`.
        """
        left = sum(len(RunRecord(run).left()) for run in self.wanted)
        steps = sum(len(run.steps) for run in self.wanted)
        self.report()
        if not left:
            return
        for name, preparation in self.grid.prepare.items():
            prepare(slug(name), preparation, self.grid.folder)
        with tqdm(total=steps, initial=steps - left, desc="ablation", unit="step", dynamic_ncols=True) as bar:

            def ended(run: Run, step: ScriptCall, status: int, given_up: int) -> None:
                how = f"failed, status {status}; log: {log_of(run, step)}" if status else "done"
                bar.write(f"{run.title}: {step.name} {how}")
                bar.update(1 + given_up)
                if status or step is run.steps[-1]:
                    self.report()

            Scheduler(self.grid.jobs, ended, (lock,)).work(self.wanted)
        self.report()

    def outcomes(self) -> list[Outcome]:
        return [outcome for run in self.runs for outcome in outcomes(self.grid, run)]

    def report(self) -> None:
        """Write the tables and the plots of all finished runs."""
        grid, found = self.grid, self.outcomes()
        write_text(grid.folder / "table.md", markdown(grid, found))
        write_csv(grid.folder / "table.csv", grid, found)
        write_runs_csv(grid.folder / "runs.csv", grid, found)
        if made := cells(grid, found):
            draw_figures(grid.folder / "figures.png", grid, made)
            if grid.plots:
                draw_against(grid.folder / "against.png", grid, made)

    def failed(self) -> list[Outcome]:
        wanted = {(run.row, run.seed) for run in self.wanted}
        return [o for o in self.outcomes() if o.failure is not None and (o.row, o.seed) in wanted]


def _finished_seeds(grid: Grid, row: str) -> list[int]:
    folders = (grid.folder / slug(row)).glob("seed*/run.json")
    return [int(path.parent.name.removeprefix("seed")) for path in folders]


def main(words: list[str]) -> int:
    path, run_options, settings = split_command_line(words)
    chosen = None if isinstance(settings.get("rows"), Mapping) else settings.pop("rows", None)
    grid = read_grid(path, settings)
    ablation = Ablation(grid, some_rows(grid, chosen), run_options)
    with locked(grid.folder) as lock:
        ablation.work(lock)
    print((grid.folder / "table.md").read_text(encoding="utf-8"))
    failed = ablation.failed()
    for outcome in failed:
        print(f"error: {outcome.row}, seed {outcome.seed}: {outcome.failure}", file=sys.stderr)
    return FAILED if failed else 0


def _terminated(number: int, frame: object) -> None:
    sys.exit(128 + number)  # an exception, so that the scheduler stops its processes


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _terminated)
    with bad_input_exits():
        status = main(sys.argv[1:])
    sys.exit(status)
