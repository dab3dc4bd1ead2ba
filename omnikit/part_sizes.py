"""Sizes that a part can be built in: `published` or `tiny` by name, and ranges of the numbers of any part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnikit.option_ranges import Range

PUBLISHED, TINY = "published", "tiny"
SIZES = (PUBLISHED, TINY)
"""Names of the sizes that a part can be built in.

`published` has the numbers as given; `tiny` is the same class with few and narrow layers, for trials.
"""

_LAYERS = Range(1, 1024, whole=True, null=True)
"""Range of the number of layers, heads or codebooks, each of which is a module of its own."""
_WIDTH = Range(1, 2**24, whole=True, null=True)
_RANGES = {
    **dict.fromkeys(
        ("layers", "heads", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "num_codebooks",
         "n_codebooks", "num_quantizers", "iterations", "patch", "stride", "encoder_rates", "decoder_rates",
         "vq_strides", "upsampling_ratios", "downsampling_ratios", "conv_stride", "conv_kernel", "kernel_size",
         "last_kernel_size", "residual_kernel_size"), _LAYERS),
    **dict.fromkeys(
        ("hidden_size", "intermediate_size", "head_dim", "vocab_size", "max_position_embeddings", "width", "hidden",
         "dim", "n_ctx", "n_mels", "n_fft", "codebook_size", "codebook_dim", "encoder_dim", "decoder_dim", "conv_dim",
         "encoder_hidden_size", "decoder_hidden_size", "num_filters", "sample_rate", "sampling_rate",
         "sliding_window", "attn_window_size", "vector_quantization_hidden_dimension"), _WIDTH),
    "tts_blocks": Range(0, 1024, whole=True),
    "text_lead": Range(-4096, 4096, whole=True),
    "delays": Range(-4096, 4096, whole=True, null=True),
    "frame_rate": Range(0, 2**24, above=True),
    "embedding_std": Range(0),
}  # fmt: skip
"""Mapping from the name of an option, in any part, to the numbers that it accepts; null = the part's own default."""


def check_numbers(options: Mapping[str, Any], flag: str) -> None:
    """Refuse options of a part whose numbers are out of range, before anything is built.

    Args:
        options: options of a part as they stand in YAML, including nested ones.
        flag: kind of the part, for messages such as `--codec.num_codebooks 0: must be ..`.

    Raises:
        ValueError: a number is outside the range of its option; the message names the first one.
    """
    for name, value in options.items():
        if isinstance(value, Mapping):
            check_numbers(value, f"{flag}.{name}")
        elif name in _RANGES and not isinstance(value, str):  # a string is a reference or a tuple
            for each in value if isinstance(value, list) else [value]:
                _RANGES[name].check(f"{flag}.{name}", each)


def sized(numbers: Mapping[str, Any], tiny: Mapping[str, Any], size: str) -> dict[str, Any]:
    """Return the options that set a network's size: the published ones, with those in `tiny` instead for that size.

    Raises:
        ValueError: there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r}: no such size (choices: {', '.join(SIZES)})")
    return {**numbers, **tiny} if size == TINY else dict(numbers)
