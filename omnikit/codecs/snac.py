"""SNAC (Siuzdak et al. 2024, arXiv 2410.14411) as a codec with a rectangular code matrix.

The network is the snac package's own class. Its codebooks run at different rates; one frame is the span of one code of
the slowest, and its codes are put in the order of a depth-first walk of the tree of rates. With strides 4, 2, 1:

    slowest   c                      one column of the matrix:  c  m0  f0  f1  m1  f2  f3
    middle    m0        m1
    fastest   f0   f1   f2   f3

Letters: B batch, N samples, T frames, K codes per frame, R codebooks of the network (one per rate).
"""

from __future__ import annotations

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
from omnikit.size_limits import check_count
from omnikit.streaming import EXACT, DecodeStream, DecodeStreams
from omnikit.untrusted_models import read_pickle

CONFIG, PUBLISHED = "config.json", "pytorch_model.bin"
TINY = {"encoder_dim": 4, "decoder_dim": 64}  # an attention head of the package is 64 wide


class SnacCodec(Codec):
    """The arguments are those of the package's `config.json`, under the same names; `weights` see `Part`.

    Attention within windows wants whole windows. So the whole decoding is that of the codes with their last frame
    repeated up to a whole window, and a stream lags a window more.

    Args:
        size: see `omnikit.part_sizes`.

    Raises:
        ValueError: the strides do not fall, each a multiple of the next, down to 1; or no such size.
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
        """From safetensors as every part, or from `pytorch_model.bin` of a folder or hub id as SNAC is published.

        Raises:
            ValueError: also where the `config.json` beside it has other numbers; sample rates leave no trace in
                the shapes.
        """
        file = published_file(self.weights)
        if file is None:
            return super().load_weights()
        config = hub_file(self.weights, CONFIG) if is_hub_id(self.weights) else file.with_name(CONFIG)
        if config.is_file():
            refuse_other_numbers(config, self.numbers, read_config(config))
        try:
            self.snac.load_state_dict(read_pickle(file))
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(f"{file} does not fit this SNAC: {one_line(error)}") from None

    def encode(self, wav: Tensor) -> Tensor:
        """Waveform [B, N] -> codes [B, K, ceil(N / frame_samples)]."""
        frames = math.ceil(wav.shape[-1] / self.frame_samples)
        wav = nn.functional.pad(wav, (0, frames * self.frame_samples - wav.shape[-1]))
        return self.pack(self.snac.encode(wav[:, None]))[..., :frames]

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, K, T] -> waveform [B, T * frame_samples]."""
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
        """The package's R lists [B, T * codes per frame of that rate] -> [B, K, T]."""
        per_frame = [[place for place in self.places if place[0] == rate] for rate in range(len(codes))]
        frames = [level.unflatten(1, (-1, len(places))) for level, places in zip(codes, per_frame, strict=True)]
        return torch.stack([frames[rate][..., nth] for rate, nth in self.places], dim=1)

    def unpack(self, codes: Tensor) -> list[Tensor]:
        """The inverse of `pack`."""
        rows = dict(zip(self.places, codes.unbind(1), strict=True))
        rates = range(1 + max(rate for rate, _ in self.places))
        return [
            torch.stack([rows[place] for place in sorted(rows) if place[0] == rate], dim=-1).flatten(1)
            for rate in rates
        ]

    def _latents(self, codes: Tensor) -> Tensor:
        """Codes [B, K, T] -> what the decoder takes [B, D, T * codes of the fastest rate per frame]."""
        return self.snac.quantizer.from_codes(self.unpack(codes))


def published_file(weights: str | None) -> Path | None:
    """The `pytorch_model.bin` that `weights` means; None where it means something else.

    Raises:
        ValueError: it can only be a hub id, and the hub does not give the file.
    """
    if weights is None or Path(weights).is_file():
        return None
    if is_hub_id(weights):
        return hub_file(weights, PUBLISHED)
    file = Path(weights) / PUBLISHED
    return file if file.is_file() else None


def _check_rates(config: Mapping[str, Any]) -> None:
    """Refuse a decoder that makes another number of samples than the encoder took."""
    down, up = (config.get(name) for name in ("encoder_rates", "decoder_rates"))
    if down and up and math.prod(down) != math.prod(up):
        raise ValueError(f"--codec.encoder_rates {down}: their product must be that of the decoder_rates {up}")


def depth_first(strides: Sequence[int]) -> list[tuple[int, int]]:
    """Where each code of a frame comes from: (rate, which one of that rate within the frame), parents first."""
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
