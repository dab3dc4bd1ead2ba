"""What engines are compared by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import omnikit
from omnikit.model import Engine, OmniLM
from omnikit.tokens import TokenLayout


def build(llm: str = "qwen2_0.5b", **options) -> OmniLM:
    """A narrow system around a backbone."""
    torch.manual_seed(1)
    return omnikit.build(size="tiny", encoder="none", llm=llm, codec="none", adapter="linear", **options)


def hidden(model: OmniLM, engine: Engine, lengths: tuple[int, ...] = (9, 6)) -> tuple[list[Tensor], list[Tensor]]:
    """Rows padded on the left, all but three steps at once, then those one by one; by the model and by the engine."""
    longest, draw = max(lengths), torch.Generator().manual_seed(0)
    steps = torch.randint(0, 9, (len(lengths), model.layout.num_streams, longest), generator=draw)
    mask = (torch.arange(longest)[None] >= longest - torch.tensor(lengths)[:, None]).long()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    found = []
    with torch.inference_mode():
        for network in (model, engine):
            cache, outputs, begin = network.new_cache(), [], 0
            for end in (longest - 3, longest - 2, longest - 1, longest):
                out = network(steps[..., begin:end], positions=positions[:, begin:end], mask=mask[:, :end], cache=cache)
                outputs += [out.text[:, -1], out.audio[:, -1]]
                begin = end
            found.append(outputs)
    return found[0], found[1]


def end_texts(network: Engine, layout: TokenLayout, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All texts end at a step, before which they are id 5."""
    asked = 0

    def logits(hidden: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        ids = torch.arange(layout.sizes[0])
        return (ids == (layout.text.eot if asked == step else 5)).float().expand(len(hidden), -1)

    monkeypatch.setattr(network, "text_logits", logits)


def error(model: OmniLM, engine: Engine, lengths: tuple[int, ...] = (9, 6)) -> float:
    """The largest difference of hidden states, relative to the largest of them."""
    ours, theirs = (torch.stack(outputs) for outputs in hidden(model, engine, lengths))
    return float((ours - theirs).abs().max() / ours.abs().max())
