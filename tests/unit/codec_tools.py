"""For tests of codecs: a stream fed in pieces, and networks that are heard."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from omnikit.interfaces import Codec


def in_chunks(
    codec: Codec, codes: Tensor, sizes: Sequence[int], mode: str = "exact"
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Codes [B, K, T] pushed in pieces of `sizes` frames, over and over until none are left.

    Returns:
        The waveform [B, N], and after each push how many frames are in and how many samples out.
    """
    pieces, log, at, out = [], [], 0, 0
    with torch.no_grad(), codec.stream(len(codes), mode) as stream:
        for size in itertools.cycle(sizes):
            pieces.append(stream.push(codes[..., at : at + size]))
            at, out = min(at + size, codes.shape[-1]), out + pieces[-1].shape[-1]
            log.append((at, out))
            if at == codes.shape[-1]:
                break
        pieces.append(stream.finish())
    return torch.cat(pieces, dim=-1), log


def loud(network: nn.Module) -> nn.Module:
    """Weights with which every layer counts. As libraries start them, random networks are nearly silent or sound alike
    whatever the codes, which tests nothing; with much larger ones they amplify rounding."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if "encoder" in name and name.endswith("original0"):  # the norm of normed weights: what goes in comes out
            nn.init.ones_(parameter)
        elif parameter.dim() > 1 and not name.endswith("alpha"):
            nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith("scale"):
            nn.init.ones_(parameter)
    return network
