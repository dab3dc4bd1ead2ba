"""Concurrent against consecutive answers: throughput, first-sound latency, and gaps in the playback of the sound.

    python benchmarks/concurrent_answers.py               # the mini system, 1, 4, 8 and 16 at once, medians of 5 rounds
    python benchmarks/concurrent_answers.py --quick       # 2 rounds

Questions are spoken by the system itself. Each is asked by a thread of its own, all at the same moment; times include
encoding and waveforms. The ratios are printed last; the exit status is 1 if one of them misses its goal.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import numpy as np
import soxr
import torch

import omnikit
from omnikit.api import Omni
from omnikit.bench.table import print_goals
from omnikit.engines import AUTO, ENGINES
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.evaluate.result_tables import markdown_table
from omnikit.option_ranges import THREADS

AT_ONCE = (1, 4, 8, 16)
"""Numbers of concurrent questions that the benchmark measures."""
TEXTS = (
    "what is two plus three", "what is the capital of france", "what colour is the sky", "say hello",
    "what is ten minus four", "what is the capital of italy", "what is the opposite of hot", "who are you",
)  # fmt: skip
"""Texts of the questions, which the system speaks before it answers them."""
MOST_SLOWER_FIRST_SOUND = 5.0
"""Maximum ratio of the first-sound latency (p95) of 16 concurrent answers to that of one (median)."""
LEAST_THROUGHPUT = 5.0
"""Minimum ratio of the throughput of 16 concurrent answers to that of consecutive ones."""


@dataclass(frozen=True)
class AnswerTimes:
    """Times of one streamed answer, in seconds."""

    first: float  # from the question to the first chunk with samples
    last: float  # from the question to the last chunk
    late: float  # longest delay of a chunk beyond the end of the previous one's playback; 0 = all were in time
    sound: float  # duration of the answer's waveform


def listen(omni: Omni, question: torch.Tensor) -> AnswerTimes:
    """Ask a question, consume its streamed answer, and return the times of its chunks."""
    began, first, played, late = time.perf_counter(), None, 0.0, 0.0
    for chunk in omni.stream(question):
        now = time.perf_counter() - began
        if len(chunk.wav):
            first = now if first is None else first
            late = max(late, now - first - played)
            played += len(chunk.wav) / omni.sample_rate
    return AnswerTimes(first, time.perf_counter() - began, late, played)


def at_once(omni: Omni, questions: list[torch.Tensor]) -> tuple[float, list[AnswerTimes]]:
    """Ask all questions at the same moment; return the seconds until all are answered, and the times of each answer."""
    with ThreadPoolExecutor(len(questions)) as pool:
        began = time.perf_counter()
        answers = list(pool.map(lambda question: listen(omni, question), questions))
        return time.perf_counter() - began, answers


def resample(rate: int, wav: torch.Tensor, own: int) -> torch.Tensor:
    """Resample a waveform [N] from its own sample rate to another (Hz)."""
    return wav if rate == own else torch.from_numpy(soxr.resample(wav.numpy(), own, rate))


def measure(omni: Omni, number: int, rounds: int) -> dict[str, list[float]]:
    """Ask the same questions consecutively, then concurrently, in several rounds; return the measurements by name."""
    spoken = [omni.speak(TEXTS[i % len(TEXTS)]).wav for i in range(number)]
    questions = [resample(omni.model.encoder.sample_rate, wav, omni.sample_rate) for wav in spoken]
    at_once(omni, questions)
    found: dict[str, list[float]] = {"ratio": [], "first": [], "late": [], "rate": []}
    for _ in range(rounds):
        began = time.perf_counter()
        for question in questions:
            listen(omni, question)
        alone = time.perf_counter() - began
        together, answers = at_once(omni, questions)
        found["ratio"].append(alone / together)
        found["first"] += [each.first for each in answers]
        found["late"] += [each.late for each in answers]
        found["rate"].append(sum(each.sound for each in answers) / together)
    return found


def report(figures: dict[int, dict[str, list[float]]]) -> int:
    """Print the table of measurements and the ratios with their limits; return 1 if a limit is violated, else 0."""
    rows = []
    for number, found in figures.items():
        first, slow = np.percentile(found["first"], (50, 95)) * 1000
        late = np.percentile(found["late"], 95) * 1000
        rows.append([str(number), f"{median(found['ratio']):.2f}", f"{first:.0f} / {slow:.0f}", f"{late:.0f}",
                     f"{max(found['late']) * 1000:.0f}", f"{median(found['rate']):.2f}"])  # fmt: skip
    header = ["at once", "throughput, x of one after another", "first sound, ms, p50 / p95"]
    header += ["latest chunk late, ms, p95", "most", "seconds of sound per second"]
    print(markdown_table(header, rows))
    ratio = median(figures[16]["ratio"])
    slower = float(np.percentile(figures[16]["first"], 95) / np.percentile(figures[1]["first"], 50))
    late = max(figures[8]["late"])
    goals = (
        (f"throughput of 16 at once: {ratio:.2f} x (goal {LEAST_THROUGHPUT:g})", ratio >= LEAST_THROUGHPUT),
        (f"first sound at 16, p95: {slower:.2f} x of one (goal {MOST_SLOWER_FIRST_SOUND:g} at most)",
         slower <= MOST_SLOWER_FIRST_SOUND),
        (f"latest chunk at 8: {late * 1000:.0f} ms after its playing time (goal 0)", late <= 0),
    )  # fmt: skip
    return print_goals(goals)


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="folder, shipped name or hub id of a system (default: mini)")
    parser.add_argument("--engine", default=AUTO, choices=(AUTO, *ENGINES), help="engine to measure (default: auto)")
    parser.add_argument("--device", default="cpu", help="device of the model, such as cuda (default: cpu)")
    parser.add_argument("--threads", type=THREADS, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--quick", action="store_true", help="two rounds instead of five")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    omni = omnikit.load(options.checkpoint, engine=options.engine, device=options.device)
    status = report({number: measure(omni, number, 2 if options.quick else 5) for number in AT_ONCE})
    omni.close()
    return status


if __name__ == "__main__":
    with bad_input_exits():
        status = main()
    sys.exit(status)
