"""SNAC (Siuzdak et al. 2024, arXiv 2410.14411) as a codec with a rectangular code matrix.

The network is the snac package's own class, whose codebooks have different rates. A frame of this codec spans one code
of the slowest codebook; its codes are in the order of a depth-first walk of the tree of rates. With strides 4, 2, 1:

    slowest   c                      one column of the matrix:  c  m0  f0  f1  m1  f2  f3
    middle    m0        m1
    fastest   f0   f1   f2   f3

Letters: B batch, N samples, T frames, K codes per frame, R codebooks of the network (one per rate).
"""

from __future__ import annotations

import inspect
import itertools
import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from snac import SNAC
from torch import Tensor, nn

from omnikit.codecs.joined_streams import JoinedStreams
from omnikit.codecs.position_noise import replace_noise
from omnikit.codecs.pretrained import read_config, refuse_other_numbers
from omnikit.codecs.streaming_centred import CentredDecoder
from omnikit.errors import one_line
from omnikit.hub import hub_file, is_hub_id
from omnikit.interfaces import Codec
from omnikit.part_sizes import sized
from omnikit.public_weights import located
from omnikit.size_limits import check_count
from omnikit.streaming import EXACT, DecodeStream, DecodeStreams
from omnikit.untrusted_models import read_pickle

CONFIG, PUBLISHED = "config.json", "pytorch_model.bin"
TINY = {"encoder_dim": 4, "decoder_dim": 64}  # an attention head of the package is 64 wide


class SnacCodec(Codec):
    """The SNAC codec with the network of the snac package.

    Networks with local attention decode whole windows of frames. So `decode` repeats the last frame up to a whole
    window, and a decode stream lags by one more window.

    Args:
        sampling_rate, vq_strides, config: the values of the package's `config.json`, under the same names.
        size: `published`, or `tiny` for few and narrow layers, see `omnikit.part_sizes`.
        weights: see `Part`; or a folder or hub id in the format in which SNAC is published.

    Raises:
        ValueError: the strides do not fall, each a multiple of the next, down to 1; or the size or an option is
            unknown.
    """

    def __init__(
        self,
        sampling_rate: int,
        *,
        vq_strides: Sequence[int],
        size: str = "published",
        weights: str | None = None,
        **config,
    ):
        super().__init__()
        self.places = depth_first(vq_strides)
        _check_names(config)
        _check_rates(config)
        numbers = {"sampling_rate": sampling_rate, "vq_strides": list(vq_strides), **config}
        self.numbers = sized(numbers, TINY, size)
        self.snac = SNAC(**self.numbers)
        replace_noise(self.snac.decoder)
        self.weights = weights
        self.sample_rate, self.codebook_size = sampling_rate, self.snac.codebook_size
        self.num_codebooks = len(self.places)
        self.frame_samples = int(self.snac.hop_length) * vq_strides[0]
        self.decoder = CentredDecoder(self.snac.decoder.model, self._latents, self.frame_samples)
        self.lookahead = self.decoder.lookahead

    def load_weights(self) -> None:
        """Read SNAC weights from safetensors, or from the `pytorch_model.bin` of a folder or hub id as published.

        Raises:
            ValueError: the weights do not fit, or the `config.json` beside them has other values, such as another
                sample rate, which does not show in the shapes.
        """
        weights = located(self.weights)
        file = published_file(weights)
        if file is None:
            return super().load_weights()
        config = hub_file(weights, CONFIG) if is_hub_id(weights) else file.with_name(CONFIG)
        if config.is_file():
            refuse_other_numbers(config, self.numbers, read_config(config))
        try:
            self.snac.load_state_dict(read_pickle(file))
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(f"{file} does not fit this SNAC: {one_line(error)}") from None

    def encode(self, wav: Tensor) -> Tensor:
        """Encode waveforms [B, N] as codes [B, K, ceil(N / frame_samples)]."""
        frames = math.ceil(wav.shape[-1] / self.frame_samples)
        wav = nn.functional.pad(wav, (0, frames * self.frame_samples - wav.shape[-1]))
        return self.pack(self.snac.encode(wav[:, None]))[..., :frames]

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, T] to waveforms [B, T * frame_samples]."""
        self.check_codes(codes)
        frames = codes.shape[-1]
        if not frames:
            return torch.zeros(len(codes), 0, device=codes.device)
        filling = codes[..., -1:].expand(-1, -1, -frames % self.decoder.align)
        wav = self.snac.decode(self.unpack(torch.cat([codes, filling], dim=-1)))[:, 0]
        return wav[:, : frames * self.frame_samples]

    def stream(self, batch_size: int = 1, mode: str = EXACT) -> DecodeStream:
        return self.decoder.stream(self, batch_size, mode)

    def streams(self, mode: str = EXACT) -> DecodeStreams:
        return JoinedStreams(self, mode)

    def pack(self, codes: Sequence[Tensor]) -> Tensor:
        """Arrange the snac package's R code tensors [B, T * codes per frame of that rate] as one matrix [B, K, T]."""
        per_frame = [[place for place in self.places if place[0] == rate] for rate in range(len(codes))]
        frames = [level.unflatten(1, (-1, len(places))) for level, places in zip(codes, per_frame, strict=True)]
        return torch.stack([frames[rate][..., nth] for rate, nth in self.places], dim=1)

    def unpack(self, codes: Tensor) -> list[Tensor]:
        """Split a code matrix [B, K, T] into the snac package's R code tensors; the inverse of `pack`."""
        rows = dict(zip(self.places, codes.unbind(1), strict=True))
        rates = range(1 + max(rate for rate, _ in self.places))
        return [
            torch.stack([rows[place] for place in sorted(rows) if place[0] == rate], dim=-1).flatten(1)
            for rate in rates
        ]

    def _latents(self, codes: Tensor) -> Tensor:
        """Return the decoder's input [B, D, T * codes of the fastest rate per frame] for codes [B, K, T]."""
        return self.snac.quantizer.from_codes(self.unpack(codes))


def published_file(weights: str | None) -> Path | None:
    """Return the path of the `pytorch_model.bin` in the folder or hub id `weights`; None if `weights` is neither.

    Raises:
        ValueError: `weights` is a hub id and the file cannot be fetched.
    """
    if weights is None or Path(weights).is_file():
        return None
    if is_hub_id(weights):
        return hub_file(weights, PUBLISHED)
    file = Path(weights) / PUBLISHED
    return file if file.is_file() else None


def _check_names(config: Mapping[str, Any]) -> None:
    """Refuse options that the snac package's network does not have."""
    known = sorted({*inspect.signature(SNAC).parameters, "size", "weights"})
    if unknown := sorted(config.keys() - set(known)):
        raise ValueError(f"--codec.{unknown[0]}: no such option (choices: {', '.join(known)})")


def _check_rates(config: Mapping[str, Any]) -> None:
    """Refuse a configuration whose decoder produces another number of samples than its encoder consumes."""
    down, up = (config.get(name) for name in ("encoder_rates", "decoder_rates"))
    if down and up and math.prod(down) != math.prod(up):
        raise ValueError(f"--codec.encoder_rates {down}: their product must be that of the decoder_rates {up}")


def depth_first(strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return for each code of a SNAC frame its rate and its index among the frame's codes of that rate, depth-first.

    Args:
        strides: frames of the fastest rate per code of each rate, slowest rate first.

    Raises:
        ValueError: the strides do not fall, each a multiple of the next, down to 1.
    """
    check_count("codec.vq_strides", max(strides, default=0))
    uneven = any(slow % fast for slow, fast in itertools.pairwise(strides))
    if not strides or strides[-1] != 1 or uneven:
        raise ValueError(f"--codec.vq_strides {list(strides)} must fall, each a multiple of the next, down to 1")

    def walk(rate: int, nth: int) -> list[tuple[int, int]]:
        if rate + 1 == len(strides):
            return [(rate, nth)]
        fan = strides[rate] // strides[rate + 1]
        return [(rate, nth)] + [place for child in range(fan) for place in walk(rate + 1, nth * fan + child)]

    return walk(0, 0)
