"""Fingerprints of frozen weights, by which a checkpoint without them recognises those that it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from omnikit.train.stored_state import frozen_state

_CHUNK = 2**24  # numbers that are hashed together; they take 16 bytes each meanwhile
_FACTOR = 0x9E3779B97F4A7C15 - 2**64  # odd, so that each position weighs the bits of its number differently
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprints(module: nn.Module) -> dict[str, str]:
    """Return a hash (16 hex digits) of the frozen weights of each part of a module that has some, by part.

    It is computed on the weights' device by sums of whole numbers, so it takes a moment and is equal everywhere.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in frozen_state(module).items():
        parts.setdefault(name.split(".")[0], {})[name] = tensor
    return {part: _hash(tensors) for part, tensors in sorted(parts.items())}


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    sums = [_sums(tensor.detach()) for tensor in tensors.values()]
    for (name, tensor), values in zip(tensors.items(), torch.stack(sums).tolist() if sums else [], strict=True):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {values}\n".encode())
    return digest.hexdigest()[:16]


def _sums(tensor: Tensor) -> Tensor:
    """Return two sums [2] of a tensor's bits, plain and weighted by position, modulo 2**64, on the tensor's device."""
    bits = tensor.contiguous().flatten()
    bits = torch.view_as_real(bits).flatten() if bits.is_complex() else bits
    bits = bits.view(_INTEGERS[bits.itemsize]) if bits.dtype != torch.bool else bits
    total = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    for start in range(0, len(bits), _CHUNK):
        some = bits[start : start + _CHUNK].long()
        places = torch.arange(start + 1, start + 1 + len(some), device=some.device) * _FACTOR
        total += torch.stack([some.sum(), (some * (places ^ (places >> 29))).sum()])
    return total.cpu()
