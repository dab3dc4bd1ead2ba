"""Start-up time: processes that load the shipped system and answer one question, relative to `import torch` alone.

    python benchmarks/startup.py              # nine pairs for each process
    python benchmarks/startup.py --pairs 3

A process and its `import torch` alternate, so that other load on the machine affects both. The ratios are printed last,
as medians over the pairs; the exit status is 1 if one is above the goal.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from omnikit.errors import ArgumentParser, bad_input_exits  # noqa: E402
from omnikit.option_ranges import COUNT  # noqa: E402

GOAL = 1.7
"""Maximum ratio of a measured process's time to that of `import torch`."""
QUESTION = ROOT / "egs" / "mini" / "questions" / "sum.wav"
TORCH = ("-c", "import torch")
"""Arguments of the Python interpreter for `import torch` alone."""
STARTS = {
    "load and chat": ("-c", "import omnikit; omnikit.load().chat('what is two plus two')"),
    "load and ask": ("-c", f"import omnikit; omnikit.load().ask({str(QUESTION)!r})"),
    "omnikit --help": ("-m", "omnikit.cli", "--help"),
}
"""Mapping from label of a measured process to the interpreter's arguments."""


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=COUNT, default=9, help="number of timings of each process (default: 9)")
    pairs = parser.parse_args().pairs
    timings = {name: time_pairs(arguments, pairs) for name, arguments in STARTS.items()}
    for name, taken in timings.items():
        alone, ours = (median(column) for column in zip(*taken, strict=True))
        print(f"{name}: {ours:.2f} s, import torch beside it {alone:.2f} s, medians of {pairs}")
    return report_goals({name: ratio(taken) for name, taken in timings.items()})


def time_pairs(arguments: tuple[str, ...], pairs: int) -> list[tuple[float, float]]:
    """Return the seconds of `import torch` and of a process that alternates with it, for each of `pairs` pairs."""
    for each in (TORCH, arguments):  # untimed: the first run writes bytecode and fills the disk cache
        run(each)
    return [(run(TORCH), run(arguments)) for _ in range(pairs)]


def run(arguments: tuple[str, ...]) -> float:
    """Return the seconds that a Python interpreter with some arguments takes from its start to its exit.

    Raises:
        ValueError: the process failed; the message is the last line that it wrote to stderr.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has bytecode, too
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    taken = time.perf_counter() - began
    if done.returncode:
        raise ValueError(f"python {' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return taken


def ratio(taken: list[tuple[float, float]]) -> float:
    """Return the ratio of a process's time to that of `import torch`, as the median over pairs."""
    return median(ours / alone for alone, ours in taken)


def report_goals(ratios: dict[str, float]) -> int:
    """Print the ratios of start-up times; return 1 if one of them is above its maximum, else 0."""
    for name, found in ratios.items():
        verdict = ", missed" if found > GOAL else ""
        print(f"{name}: {found:.2f} x import torch (goal {GOAL:g} at most{verdict})")
    return int(max(ratios.values()) > GOAL)


if __name__ == "__main__":
    with bad_input_exits():
        status = main()
    sys.exit(status)
