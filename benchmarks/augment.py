"""Measure how many recordings per CPU second each augmentation and each of its effects processes.

    python benchmarks/augment.py [--recordings 400]

The recordings are the questions of the mini system's demo. An effect is timed as if it were applied to each recording.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from omnikit.audio.io import load_audio
from omnikit.data.augment import Augment, SeededAugment, named_augment
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.hparams import choices
from omnikit.hparams.named_parts import AUGMENT
from omnikit.option_ranges import COUNT

RATE = 16000
QUESTIONS = Path(__file__).resolve().parents[1] / "egs" / "mini" / "questions"


def cpu_seconds(augment: Augment, wavs: Sequence[np.ndarray], recordings: int) -> float:
    """Return the CPU time in seconds that a recording takes on average."""
    seeded = SeededAugment(augment)
    for number in range(min(recordings, 5)):  # imports
        seeded(wavs[number % len(wavs)], RATE, str(number), 0)
    began = time.process_time()
    for number in range(recordings):
        seeded(wavs[number % len(wavs)], RATE, str(number), 1)
    return (time.process_time() - began) / recordings


def main() -> None:
    """Print the figures of each file in `hparams/augment/`."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=COUNT, default=400, help="number of recordings")
    recordings = parser.parse_args().recordings
    wavs = [load_audio(path, RATE).numpy() for path in sorted(QUESTIONS.glob("*.wav"))]
    print(f"recordings of {np.mean([len(wav) for wav in wavs]) / RATE:.1f} s on average")
    for name in choices(AUGMENT):
        augment = named_augment(name)
        print(f"{name}: {1 / cpu_seconds(augment, wavs, recordings):.0f} recordings per CPU second")
        for key, effect in augment.effects.items():
            effect.probability = 1.0
            print(f"  {key} {1000 * cpu_seconds(Augment(**{key: effect}), wavs, -(-recordings // 5)):.2f} ms")


if __name__ == "__main__":
    with bad_input_exits():
        main()
