"""Number of floating-point operations of a training step, from which the utilisation of a GPU follows (MFU).

Multiplying one position by a matrix of n weights takes 2 n operations, and as many again for each gradient: of the
input, for matrices above something trainable, and of the weights, if these train. A position attends to L / 2 others on
average, which takes 2 L D operations, and twice as many in the backward pass. Heads count at labelled positions and the
adapter at all frames. Not counted are norms, a frozen encoder, the optimiser, and activations that are computed again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import nn

from omnikit.model import OmniLM
from omnikit.train.transformer_blocks import transformer_blocks

PEAKS = {
    "A100": 312e12, "L4": 121e12, "L40S": 362e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "GH200": 989e12, "H200 NVL": 835e12, "H200": 989e12, "B200": 2250e12,
}  # fmt: skip
"""Mapping from names of GPUs to operations per second of dense bfloat16 products in NVIDIA's data sheets.

A name with more words stands before one with fewer.
"""


class StepOperations:
    """Operations per position, label and frame of a model, counted with the parts frozen that are frozen now."""

    def __init__(self, model: OmniLM):
        blocks = transformer_blocks(model)
        inputs = (model.new_text_embeddings.embed, model.new_audio_embeddings.embed, model.adapter, *_tables(model.llm))
        below, self.per_position, self.per_pair = any(map(_trains, inputs)), 0.0, 0.0
        for block in blocks:
            below = below or _trains(block)
            self.per_position += sum(_factor(one, below) * one.weight.numel() for one in _matrices([block]))
            self.per_pair += (6 if below else 2) * _attention_width(model.llm)
        inside = {id(one) for one in _matrices(blocks)}
        text = [one for one in _matrices([model.llm]) if id(one) not in inside] + [model.new_text_embeddings.head]
        self.per_text_label = sum(_factor(one, below) * one.weight.numel() for one in text)
        audio = model.new_audio_embeddings.head
        self.per_audio_label = _factor(audio, below) * audio.weight.numel()
        self.per_frame = 0.0
        for number, one in enumerate(_matrices([model.adapter])):
            self.per_frame += _factor(one, number > 0 and _trains(model.adapter)) * one.weight.numel()

    def count(self, *, sequences: int, positions: int, text_labels: int, audio_labels: int, frames: int) -> float:
        """Return the operations of a training step on a batch of sequences of about the same length.

        Args:
            positions: positions of all sequences.
            text_labels: positions with a label in the text stream.
            audio_labels: positions with a label in an audio stream.
            frames: feature frames of all sequences.
        """
        length = positions / max(1, sequences)
        return (
            positions * (self.per_position + length * self.per_pair)
            + text_labels * self.per_text_label
            + audio_labels * self.per_audio_label
            + frames * self.per_frame
        )


def peak_operations(device: torch.device, precision: str) -> float | None:
    """Return the peak operations per second of a GPU from `PEAKS`; None if it is not listed, or not for a precision."""
    if device.type != "cuda" or precision not in ("bf16", "fp16"):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for gpu, peak in PEAKS.items() if _names(gpu, name)), None)


def _names(gpu: str, name: str) -> bool:
    """Return whether all words of a GPU's name in `PEAKS` stand in the name that its driver reports."""
    return set(gpu.split()) <= set(re.split(r"[^A-Za-z0-9]+", name))


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _factor(matrix: nn.Linear, input_gradient: bool) -> int:
    return 2 + 2 * input_gradient + 2 * matrix.weight.requires_grad


def _matrices(modules: Iterable[nn.Module]) -> list[nn.Linear]:
    return [one for module in modules for one in module.modules() if isinstance(one, nn.Linear)]


def _tables(module: nn.Module) -> list[nn.Embedding]:
    return [one for one in module.modules() if isinstance(one, nn.Embedding)]


def _attention_width(llm: nn.Module) -> int:
    """Return the width of all heads of a block: as many heads as the configuration says, or the hidden width."""
    config = getattr(llm, "config", None)
    heads, each = (getattr(config, name, None) for name in ("num_attention_heads", "head_dim"))
    return heads * each if heads and each else llm.dim
