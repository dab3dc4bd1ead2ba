"""Counter-based random numbers: a value depends on its key alone, not on the order or number of other draws."""

from __future__ import annotations

from torch import Tensor

GOLDEN = 0x9E3779B9
"""Hash constant: 2**32 divided by the golden ratio; its multiples are spread evenly over 32 bits."""
_MASK = 0xFFFFFFFF


def hash32(keys: Tensor) -> Tensor:
    """Hash integers of any shape to 0 .. 2**32 - 1, int64, with the finaliser of MurmurHash3 (32 bits)."""
    x = keys & _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def gumbel(keys: Tensor) -> Tensor:
    """Convert hashes from `hash32`, of any shape, to standard Gumbel noise, float32."""
    uniform = ((keys >> 9).float() + 0.5) / 2**23  # 24 bits would round to 1.0, whose noise is infinite
    return -(-uniform.log()).log()
