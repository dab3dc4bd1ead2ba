"""The probability that somebody speaks, computed by the Silero VAD network for windows of 32 ms.

The weights are those in the package `silero-vad` (github.com/snakers4/silero-vad, MIT licence). The network is computed
with numpy, since it is so small that torch spends most of the time on calling its operators: 3 times as long. The
package is not imported, since its import limits all of torch to one thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from omnikit.errors import missing_package

RATE = 16000
"""Sample rate in Hz of the network's input."""
WINDOW = 512
"""Number of samples in a window."""
_CONTEXT = 64  # samples of the window before that the network is given again
_WIDTH = 128  # of the LSTM
_STFT_SIZE, _STFT_HOP = 256, 128
_STRIDES = (1, 2, 2, 1)  # of the four convolutions


@dataclass
class Hearing:
    """State of the network for one stream of audio: the last samples and the state of its LSTM."""

    context: np.ndarray = field(default_factory=lambda: np.zeros(_CONTEXT, np.float32))
    hidden: np.ndarray = field(default_factory=lambda: np.zeros(_WIDTH, np.float32))
    cell: np.ndarray = field(default_factory=lambda: np.zeros(_WIDTH, np.float32))


class VoiceActivity:
    """The network with its weights, which any number of streams can use at the same time.

    Args:
        weights: arrays by their names in `silero_vad_16k.safetensors`.
    """

    def __init__(self, weights: dict[str, np.ndarray]):
        self.stft = _columns(weights["stft_conv.weight"])
        self.convolutions = [
            (_columns(weights[f"conv{number}.weight"]), weights[f"conv{number}.bias"], stride)
            for number, stride in enumerate(_STRIDES, 1)
        ]
        gates = np.concatenate([weights["lstm_cell.weight_ih"], weights["lstm_cell.weight_hh"]], axis=1)
        self.gates = np.ascontiguousarray(gates.T)
        self.gates_bias = weights["lstm_cell.bias_ih"] + weights["lstm_cell.bias_hh"]
        self.last, self.last_bias = weights["final_conv.weight"].reshape(-1), weights["final_conv.bias"][0]

    def probability(self, window: np.ndarray, hearing: Hearing) -> float:
        """Return the probability of speech in the next window [512] (float32) of a stream, and update its state."""
        samples = np.concatenate([hearing.context, window, window[-2 : -_CONTEXT - 2 : -1]])  # mirrored at the end
        hearing.context = window[-_CONTEXT:].copy()
        features = self._encode(samples)
        gates = np.concatenate([features, hearing.hidden]) @ self.gates + self.gates_bias
        enter, keep, value, leave = np.split(gates, 4)
        hearing.cell = _sigmoid(keep) * hearing.cell + _sigmoid(enter) * np.tanh(value)
        hearing.hidden = _sigmoid(leave) * np.tanh(hearing.cell)
        return float(_sigmoid(np.maximum(hearing.hidden, 0) @ self.last + self.last_bias))

    def _encode(self, samples: np.ndarray) -> np.ndarray:
        """Return the features [128] of samples [640]: magnitudes of a spectrum after four convolutions over time."""
        spectrum = _frames(samples[:, None], _STFT_SIZE, _STFT_HOP) @ self.stft
        bins = spectrum.shape[1] // 2
        values = np.sqrt(spectrum[:, :bins] ** 2 + spectrum[:, bins:] ** 2)
        for weight, bias, stride in self.convolutions:
            edge = np.zeros((1, values.shape[1]), np.float32)
            values = np.maximum(_frames(np.concatenate([edge, values, edge]), 3, stride) @ weight + bias, 0)
        return values[0]


@cache
def shipped() -> VoiceActivity:
    """Load the network with the weights of the package `silero-vad`; later calls return the same one.

    Raises:
        ValueError: the package is not installed, or has no such weights.
    """
    package = find_spec("silero_vad")
    if package is None or not package.submodule_search_locations:
        raise ValueError(f"turn detection: {missing_package('silero_vad')}")
    file = Path(package.submodule_search_locations[0]) / "data" / "silero_vad_16k.safetensors"
    try:
        return VoiceActivity(load_file(file))
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); turn detection needs silero-vad 6.2.1 or later") from None


def _columns(weight: np.ndarray) -> np.ndarray:
    """Return the weights [outputs, inputs, width] of a convolution as a matrix [width * inputs, outputs]."""
    return np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(-1, len(weight)))


def _frames(values: np.ndarray, width: int, hop: int) -> np.ndarray:
    """Return the overlapping frames [F, width * D] of values [T, D]."""
    return np.stack([values[at : at + width].reshape(-1) for at in range(0, len(values) - width + 1, hop)])


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * values)  # cannot overflow
