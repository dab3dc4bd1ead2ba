"""Stretches of speech in a whole recording, as the package `silero-vad` finds them with its default settings.

The package has two sets of weights: those in its TorchScript file, which `load_silero_vad()` loads, and those in
safetensors, which turn detection uses. Here it is the former, so that figures equal those of scripts with the package.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from omnikit.errors import missing_package, one_line
from omnikit.serve.realtime.voice_activity import RATE, WINDOW, Hearing, VoiceActivity

SPEECH, PAUSE = 0.5, 0.35
"""Probabilities at which speech begins and a pause begins, those of `get_speech_timestamps`."""
SHORTEST_SPEECH, SHORTEST_PAUSE, MARGIN = RATE // 4, RATE // 10, RATE * 3 // 100
"""Samples of speech that count, samples of a pause that divides, and samples added on both sides."""
_PARTS = {
    "stft": "stft_conv", "decoder.rnn": "lstm_cell", "decoder.decoder.2": "final_conv",
    **{f"encoder.{number}.reparam_conv": f"conv{number + 1}" for number in range(4)},
}  # fmt: skip
"""Mapping from the parts of the network in TorchScript to their names in safetensors."""


@cache
def network() -> VoiceActivity:
    """Load the network that `load_silero_vad()` loads; later calls return the same one.

    Raises:
        ValueError: the package is not installed, or has another network.
    """
    package = find_spec("silero_vad")
    if package is None or not package.submodule_search_locations:
        raise ValueError(f"speech segments: {missing_package('silero_vad')}")
    file = Path(package.submodule_search_locations[0]) / "data" / "silero_vad.jit"
    try:
        with warnings.catch_warnings(action="ignore"):  # torch is about to drop TorchScript
            state = torch.jit.load(file)._model.state_dict()
        weights = {}
        for name, value in state.items():
            part, _, kind = name.rpartition(".")
            weights[f"{_PARTS[part]}.{kind.replace('forward_basis_buffer', 'weight')}"] = value.numpy()
        return VoiceActivity(weights)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read ({one_line(error)}); needs silero-vad 6.2.1 or later") from None


def probabilities(wav: np.ndarray) -> list[float]:
    """Return the probability of speech in each window of a waveform [N] (float32, at `voice_activity.RATE`)."""
    silero, hearing = network(), Hearing()
    padded = np.pad(wav.astype(np.float32), (0, -len(wav) % WINDOW))
    return [silero.probability(window, hearing) for window in padded.reshape(-1, WINDOW)]


def speech_segments(wav: np.ndarray) -> list[tuple[float, float]]:
    """Return the seconds between which somebody speaks in a waveform [N] (float32, at `voice_activity.RATE`).

    Seconds are rounded to tenths, as `get_speech_timestamps(.., return_seconds=True)` does.
    """
    length = len(wav)
    found = _padded(_stretches(probabilities(wav), length), length)
    return [(round(begin / RATE, 1), min(round(end / RATE, 1), length / RATE)) for begin, end in found]


def _stretches(speech: Sequence[float], length: int) -> list[tuple[int, int]]:
    """Return first and last samples of the stretches of speech, from the probabilities of all windows."""
    found, begin, pause = [], None, None
    for at, probability in zip(range(0, len(speech) * WINDOW, WINDOW), speech, strict=True):
        if probability >= SPEECH:
            begin, pause = at if begin is None else begin, None
        elif begin is not None and probability < PAUSE:
            pause = at if pause is None else pause
            if at - pause >= SHORTEST_PAUSE:
                found.append((begin, pause))
                begin = pause = None
    if begin is not None:
        found.append((begin, length))
    return [(first, last) for first, last in found if last - first > SHORTEST_SPEECH]


def _padded(stretches: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Return stretches with a margin on both sides, or with half of the pause between two if that is less."""
    begins, ends = [first for first, _ in stretches], [last for _, last in stretches]
    for number, (first, last) in enumerate(stretches):
        before = first if number == 0 else first - stretches[number - 1][1]
        after = length - last if number == len(stretches) - 1 else stretches[number + 1][0] - last
        begins[number] -= min(MARGIN, before if number == 0 else before // 2)
        ends[number] += min(MARGIN, after if number == len(stretches) - 1 else after // 2)
    return list(zip(begins, ends, strict=True))
