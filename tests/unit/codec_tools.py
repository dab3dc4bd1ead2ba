"""Helpers for tests of audio codecs: decode streams fed in chunks, and random weights that make every layer audible."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from omnikit.interfaces import Codec


def in_chunks(
    codec: Codec, codes: Tensor, sizes: Sequence[int], mode: str = "exact"
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Decode codes [B, K, T] by a decode stream that is fed chunks of `sizes` frames in turn until all are pushed.

    Returns:
        The waveform [B, N], and the number of frames pushed and of samples returned after each push.
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
    """Set the weights of a codec's network such that every layer affects the output, and return the network.

    With the initial weights of libraries, random networks are nearly silent or sound the same whatever the codes, so a
    test of them could not fail; much larger weights would amplify rounding errors.
    """
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if "encoder" in name and name.endswith("original0"):  # the gain of weight-normed layers: keep the amplitude
            nn.init.ones_(parameter)
        elif parameter.dim() > 1 and not name.endswith("alpha"):
            nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith("scale"):
            nn.init.ones_(parameter)
    return network
