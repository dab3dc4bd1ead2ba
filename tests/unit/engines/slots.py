"""Helpers that drive the slots of an engine and compare each sequence with the model's own computation of it alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import omnikit
from omnikit.interfaces import Engine, Hidden, Slots
from omnikit.model import OmniLM


def build(llm: str = "qwen2_0.5b", **options) -> OmniLM:
    """Build a narrow system around a backbone, without audio encoder and codec."""
    torch.manual_seed(1)
    return omnikit.build(size="tiny", encoder="none", llm=llm, codec="none", adapter="linear", **options).eval()


@torch.inference_mode()
def alone(model: OmniLM, embeddings: Tensor) -> Hidden:
    """Compute the hidden states [L, D] of embeddings [L, D] with the model itself, all positions at once."""
    positions = torch.arange(len(embeddings), device=embeddings.device)[None]
    trunk = model.llm(embeddings[None], positions)
    text = model.llm.final_norm(trunk)[0]
    return Hidden(text, text if model.tts_adapter is None else model.tts_adapter(trunk, positions)[0])


@dataclass
class Sequence:
    """One sequence of a test: its embeddings, future positions included, and the number of positions fed so far."""

    embeddings: Tensor
    length: int


class Batch:
    """A running batch whose sequences are fed random embeddings, and which checks every hidden state.

    Args:
        model: model that computes the expected hidden states.
        slots: slots to test.
        most: maximum difference, relative to the largest expected number.
    """

    def __init__(self, model: OmniLM, slots: Slots, most: float = 1e-5):
        self.model, self.slots, self.most, self.sequences = model, slots, most, []
        self.draw = torch.Generator().manual_seed(0)

    def new(self, *lengths: int, piece: int = 5, room: int = 80) -> None:
        """Admit new sequences of the given lengths, prefilled `piece` positions at a time."""
        self.sequences += (joining := [Sequence(self._random(room), length) for length in lengths])
        prefill = self.slots.prefill([one.embeddings[: one.length] for one in joining])
        assert prefill.left == sum(lengths)
        while prefill.left:
            before = prefill.left
            prefill.advance(piece)
            assert 1 <= before - prefill.left <= max(piece, len(lengths))
        self.slots.admit(prefill)
        self._check_lengths()

    def _random(self, length: int) -> Tensor:
        embeddings = torch.randn(length, self.model.llm.dim, generator=self.draw)
        return embeddings.to(device=self.model.device, dtype=self.model.dtype)

    def advance(self, steps: int = 1) -> None:
        for _ in range(steps):
            fed = torch.stack([one.embeddings[one.length] for one in self.sequences])
            hidden = self.slots.advance(fed)
            for slot, one in enumerate(self.sequences):
                one.length += 1
                expected = alone(self.model, one.embeddings[: one.length])
                self.check(hidden.text[slot], expected.text[-1])
                self.check(hidden.audio[slot], expected.audio[-1])
            self._check_lengths()

    def check(self, found: Tensor, expected: Tensor) -> None:
        difference = float((found - expected).abs().max() / expected.abs().max())
        assert difference < self.most, difference  # fails for NaN, too

    def release(self, slot: int) -> None:
        self.slots.release(slot)
        self.sequences[slot] = self.sequences[-1]
        self.sequences.pop()
        self._check_lengths()

    def copy(self, slot: int) -> None:
        """Append a copy of a sequence to the batch; the copy continues with other embeddings than the original."""
        self.slots.copy(slot)
        one = self.sequences[slot]
        other = self._random(len(one.embeddings))
        other[: one.length] = one.embeddings[: one.length]
        self.sequences.append(Sequence(other, one.length))
        self._check_lengths()

    def _check_lengths(self) -> None:
        assert self.slots.lengths == [one.length for one in self.sequences]
        assert len(self.slots) == len(self.sequences)


class Greedy:
    """A greedy decode step over preallocated tensors, as the functions `embed` and `choose` that `Slots.step` takes.

    Audio streams are chosen in the variant `()`; in the variant `("text",)` their tokens stay what they were.
    """

    def __init__(self, engine: Engine, model: OmniLM, capacity: int):
        self.engine, self.model = engine, model
        self.tokens = torch.zeros(capacity, model.layout.num_streams, dtype=torch.long, device=model.device)
        self.steps = torch.zeros((), dtype=torch.long, device=model.device)

    def embed(self, rows: int) -> Tensor:
        return self.model.embed(self.tokens[:rows, :, None])[:, 0]

    def choose(self, hidden: Hidden) -> None:
        self._choose_text(hidden)
        audio = self.engine.audio_logits(hidden.audio).split(self.model.layout.sizes[1:], dim=-1)
        for stream, logits in enumerate(audio, start=1):
            self.tokens[: len(logits), stream] = logits.argmax(dim=-1)

    def _choose_text(self, hidden: Hidden) -> None:
        self.steps += 1  # counts every run, also one that decodes no step
        text = self.engine.text_logits(hidden.text).argmax(dim=-1)
        self.tokens[: len(text), 0] = text

    def step(self, slots: Slots, *, audio: bool = True) -> Tensor:
        """Decode one step of all sequences and return the chosen tokens [R, S]."""
        if audio:
            slots.step(self.embed, self.choose)
        else:
            slots.step(self.embed, self._choose_text, ("text",))
        return self.tokens[: len(slots)].clone()


@torch.inference_mode()
def greedy_alone(model: OmniLM, prompt: Tensor, first: Tensor, steps: int, audio: list[bool] | None = None) -> Tensor:
    """Return the tokens [steps, S] that follow a prompt's embeddings [L, D] and a first token [S].

    The model computes all positions again in every step.

    Args:
        audio: whether audio streams are chosen, for each step; None = in every step.
    """
    fed, tokens, found = prompt, first, []
    for step in range(steps):
        fed = torch.cat([fed, model.embed(tokens[None, :, None])[0]])
        hidden = alone(model, fed)
        tokens = tokens.clone()
        tokens[0] = model.text_logits(hidden.text[-1]).argmax()
        if audio is None or audio[step]:
            logits = model.new_audio_embeddings.head(hidden.audio[-1]).split(model.layout.sizes[1:])
            tokens[1:] = torch.stack([one.argmax() for one in logits])
        found.append(tokens)
    return torch.stack(found)
