"""Helpers that feed noise to an engine's slots, and compare the hidden states with each sequence computed alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omnikit.interfaces import Engine, Slots
from omnikit.model import OmniLM
from tests.unit.engines.slots import alone as hidden_alone


def sharpen(model: OmniLM, factor: float = 15.0) -> OmniLM:
    """Scale up the weight matrices of a model's blocks: with small random ones, positions hardly attend to others."""
    for blocks in (model.llm.trunk.layers, *([model.tts_adapter.trunk.layers] if model.tts_adapter else [])):
        for parameter in blocks.parameters():
            if parameter.dim() > 1:
                parameter.data *= factor
    return model


class Compared:
    """Slots of an engine that are fed noise and checked: each hidden state equals that of its sequence computed alone.
    """

    def __init__(self, model: OmniLM, slots: Slots, seed: int = 0):
        self.model, self.slots = model, slots
        self.draw = torch.Generator().manual_seed(seed)
        self.fed: list[Tensor] = []  # embeddings [L, D] of each sequence
        self.worst = 0.0  # largest difference so far, relative to the largest hidden state

    def noise(self, length: int) -> Tensor:
        return torch.randn(length, self.model.llm.dim, generator=self.draw)

    def admit(self, *lengths: int, piece: int = 1000, broken: bool = False) -> None:
        """Admit sequences of noise, prefilled `piece` positions at a time; `broken` ones are NaN and not compared."""
        prompts = [self.noise(length) + (float("nan") if broken else 0.0) for length in lengths]
        prefill = self.slots.prefill(prompts)
        while prefill.left:
            prefill.advance(piece)
        self.slots.admit(prefill)
        self.fed += prompts
        self.check_lengths()

    def advance(self, steps: int = 1) -> None:
        for _ in range(steps):
            new = self.noise(len(self.fed))
            hidden = self.slots.advance(new)
            self.fed = [torch.cat([fed, one[None]]) for fed, one in zip(self.fed, new, strict=True)]
            for slot, fed in enumerate(self.fed):
                if not fed.isnan().any():
                    alone = hidden_alone(self.model, fed)
                    self.compare(hidden.text[slot], alone.text[-1])
                    self.compare(hidden.audio[slot], alone.audio[-1])
        self.check_lengths()

    def compare(self, found: Tensor, expected: Tensor) -> None:
        difference = float((found - expected).abs().max() / expected.abs().max())
        self.worst = max(self.worst, difference) if difference == difference else float("inf")

    def copy(self, slot: int) -> None:
        self.slots.copy(slot)
        self.fed.append(self.fed[slot])
        self.check_lengths()

    def release(self, slot: int) -> None:
        self.slots.release(slot)
        self.fed[slot] = self.fed[-1]
        self.fed.pop()
        self.check_lengths()

    def check_lengths(self) -> None:
        assert list(self.slots.lengths) == [len(fed) for fed in self.fed]


def random_operations(compared: Compared, operations: int, seed: int, longest: int = 30) -> None:
    """Admit, advance, copy and release sequences in an engine's slots, in a random order."""
    draw = torch.Generator().manual_seed(seed)

    def integer(least: int, end: int) -> int:
        return int(torch.randint(least, end, (), generator=draw))

    for _ in range(operations):
        count, room = len(compared.fed), compared.slots.capacity - len(compared.fed)
        kind = integer(0, 7)
        if kind == 0 and count:
            compared.release(integer(0, count))
        elif kind == 1 and count and room:
            compared.copy(integer(0, count))
        elif (kind == 2 or not count) and room:
            lengths = [integer(1, longest) for _ in range(integer(1, min(room, 3) + 1))]
            compared.admit(*lengths, piece=integer(1, 2 * longest))
        else:
            compared.advance()


@torch.inference_mode()
def greedy(model: OmniLM, engine: Engine, prompts: Sequence[Tensor], steps: int) -> list[Tensor]:
    """Decode prompts [S, L_i] greedily in one batch with an engine.

    Returns:
        The tokens [steps, S] that follow each prompt.
    """
    slots = engine.open(len(prompts))
    prefill = slots.prefill([model.embed(prompt[None, :, :-1])[0] for prompt in prompts])
    while prefill.left:
        prefill.advance(16)
    slots.admit(prefill)
    tokens, found = torch.stack([prompt[:, -1] for prompt in prompts]), []
    for _ in range(steps):
        hidden = slots.advance(model.embed(tokens[..., None])[:, 0])
        tokens = most_likely(model, engine.text_logits(hidden.text), engine.audio_logits(hidden.audio))
        found.append(tokens)
    return list(torch.stack(found, dim=1))


@torch.inference_mode()
def greedy_alone(model: OmniLM, prompt: Tensor, steps: int) -> Tensor:
    """Decode one prompt [S, L] greedily with the model itself, computing all positions again in every step."""
    for _ in range(steps):
        hidden = hidden_alone(model, model.embed(prompt[None])[0])
        text = torch.cat([model.llm.head(hidden.text[-1:]), model.new_text_embeddings.head(hidden.text[-1:])], dim=-1)
        tokens = most_likely(model, text, model.new_audio_embeddings.head(hidden.audio[-1:]))
        prompt = torch.cat([prompt, tokens.T], dim=1)
    return prompt[:, -steps:].T


def most_likely(model: OmniLM, text: Tensor, audio: Tensor) -> Tensor:
    """Return the most likely tokens [R, S] of R sequences from text logits [R, V] and audio logits [R, sum of V]."""
    streams = [text, *audio.split(model.layout.sizes[1:], dim=-1)]
    return torch.stack([logits.argmax(dim=-1) for logits in streams], dim=1)
