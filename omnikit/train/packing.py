"""Check that a model can be trained with packed rows, in which no sample may see another one."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from omnikit.errors import one_line
from omnikit.model import OmniLM, PackedRows

_FIRST, _SECOND = 7, 9  # lengths of the two sequences that are tried
_LEAK, _SHIFT = 1e-5, 5e-3
"""Maximum differences relative to the largest hidden state: with another neighbour, and from the sequence alone.

The first is computed by the same operations, the second by operations of other sizes, which round differently.
"""
_CHOICE = "use another backbone, llm.attention sdpa or eager, or --pack false"


def require_packed_rows(model: OmniLM) -> None:
    """Check that the blocks of a model keep the sequences of a row apart, and that its recipe tells them which.

    Two random sequences in one row are computed in each of two rows, which is a short forward pass. In training the
    backbone then refuses batches whose packing it is not given.

    Raises:
        ValueError: backbone or TTS adapter do not take packed rows, or compute something else with them.
    """
    name = type(getattr(model.llm, "trunk", model.llm)).__name__
    for part in (model.llm, model.tts_adapter):
        if part is not None and "sequences" not in inspect.signature(part.forward).parameters:
            raise ValueError(f"--pack true: {name} takes no packed rows (argument `sequences`); {_CHOICE}")
    try:
        leak, shift = _differences(model)
    except Exception as error:  # attention implementations raise many classes of errors
        raise ValueError(f"--pack true: {name} cannot compute packed rows ({one_line(error)}); {_CHOICE}") from None
    if not (leak <= _LEAK and shift <= _SHIFT):  # NaN counts as different
        raise ValueError(f"--pack true: {name} does not keep the samples of a row apart; {_CHOICE}")
    model.llm.register_forward_pre_hook(_refuse_unpacked, with_kwargs=True)


def _differences(model: OmniLM) -> tuple[float, float]:
    """Return by how much a sequence differs with another neighbour in its row, and from itself alone."""
    embeddings, packed = _two_rows(model)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            rows = model.hidden(embeddings, packed=packed)
            alone = model.hidden(embeddings[:1, _FIRST:])
    finally:
        model.train(training)
    pairs = ((rows.text[:, _FIRST:], alone.text[0]), (rows.audio[:, _FIRST:], alone.audio[0]))
    leak = max(_relative(second[0], second[1]) for second, _ in pairs)
    return leak, max(_relative(second[0], single) for second, single in pairs)


def _two_rows(model: OmniLM) -> tuple[Tensor, PackedRows]:
    """Return embeddings [2, L, D] of two rows with different first sequences and the same second one."""
    lengths = torch.tensor([_FIRST, _SECOND])
    embeddings = torch.randn(2, _FIRST + _SECOND, model.llm.dim, generator=torch.Generator().manual_seed(0))
    embeddings[1, _FIRST:] = embeddings[0, _FIRST:]
    positions = torch.cat([torch.arange(length) for length in lengths]).repeat(2, 1)
    sequences = torch.stack([torch.arange(2), torch.arange(2, 4)]).repeat_interleave(lengths, dim=1)
    packed = PackedRows(positions.to(model.device), sequences.to(model.device))
    return (embeddings * model.llm.embedding_std).to(model.device, model.dtype), packed


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _refuse_unpacked(_: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
    """Raise a `ValueError` in training if a forward pass is not told which samples a row holds."""
    if torch.is_grad_enabled() and options.get("sequences") is None:
        raise ValueError("--pack true: compute_forward must pass packed=batch.packed to the model; or use --pack false")
