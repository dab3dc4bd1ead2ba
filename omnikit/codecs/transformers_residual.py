"""Base class of the codecs with residual vector quantisation (RVQ) from Hugging Face's `transformers`.

Each codebook quantises the residual of those before it, so the first few codebooks are a codec at a lower bit rate.

Letters: B batch, N samples, T frames, K codebooks in use.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from omnikit.codecs.pretrained import read_network
from omnikit.hub import holds_transformers
from omnikit.interfaces import Codec
from omnikit.part_sizes import PUBLISHED, sized
from omnikit.public_weights import located
from omnikit.size_limits import check_counts
from omnikit.weights import load_into


class ResidualCodec(Codec):
    """Base class for a codec whose network is a model of transformers, built from its configuration.

    Args:
        config: values of the transformers configuration, under its names.
        num_codebooks: K, number of codebooks in use, the first of the network's; the others are dropped.
        size: `published`, or `tiny` for few and narrow layers, see `omnikit.part_sizes`.
        weights: see `Part`; or a folder or hub id in the format of transformers.

    Raises:
        ValueError: the network has fewer codebooks, the size is unknown, or the configuration cannot be streamed.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    network_class: ClassVar[type[PreTrainedModel]]
    tiny: ClassVar[Mapping[str, Any]]
    """Mapping from configuration keys to the values that replace the published ones at `size: tiny`."""
    fixed: ClassVar[Mapping[str, Any]] = {}
    """Mapping from configuration keys to the values that the codec relies on; other values are refused."""

    def __init__(
        self, *, config: Mapping[str, Any], num_codebooks: int, size: str = PUBLISHED, weights: str | None = None
    ):
        super().__init__()
        self.numbers = {**self.fixed, **sized(config, self.tiny, size)}
        self._refuse_other_kinds()
        check_counts("codec.config", self.numbers)
        configuration = self.config_class(**self.numbers)
        self.network = self.network_class(configuration)
        self.weights, self.num_codebooks = weights, num_codebooks
        self.sample_rate, self.codebook_size = configuration.sampling_rate, configuration.codebook_size
        self.frame_samples = self.samples_per_frame()
        self._unused = self._keep_first(num_codebooks)
        for table in self.tables():
            nn.init.normal_(table)  # transformers initialises them with zeros, so that all codes would decode alike
        self.lookahead = self.lag()

    @abstractmethod
    def samples_per_frame(self) -> int: ...

    @abstractmethod
    def lag(self) -> int:
        """Return the number of samples by which an exact decode stream lags behind its frames (`lookahead`)."""

    @abstractmethod
    def quantizers(self) -> list[nn.ModuleList]:
        """Return the quantiser modules of the network, one per codebook and in order, as one or more lists."""

    @abstractmethod
    def tables(self) -> list[Tensor]:
        """Return the entries [C, D] of each codebook in use, where C is the number of codes."""

    @abstractmethod
    def encode_frames(self, wav: Tensor) -> Tensor:
        """Encode waveforms of whole frames [B, 1, T * frame_samples] as codes [B, K, T]."""

    @abstractmethod
    def decode_frames(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, T], T > 0, to waveforms [B, N], N <= T * frame_samples."""

    def load_weights(self) -> None:
        """Read the codec's weights from safetensors, or from the format of transformers' `save_pretrained`.

        Raises:
            ValueError: the weights cannot be read or do not fit.
        """
        if self.weights is None:
            return
        weights = located(self.weights)
        if holds_transformers(weights):
            read_network(weights, self.network, self.numbers)
        else:
            load_into(self, weights, fit=self._used)

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        """Encode waveforms [B, N] as codes [B, K, ceil(N / frame_samples)]; silence fills up the last frame."""
        padding = -wav.shape[-1] % self.frame_samples
        return self.encode_frames(nn.functional.pad(wav, (0, padding))[:, None])

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, T] to waveforms [B, T * frame_samples]."""
        self.check_codes(codes)
        samples = codes.shape[-1] * self.frame_samples
        if not samples:
            return torch.zeros(len(codes), 0, device=codes.device)
        wav = self.decode_frames(codes)
        return nn.functional.pad(wav, (0, samples - wav.shape[-1]))

    def _refuse_other_kinds(self) -> None:
        for name, value in self.fixed.items():
            if self.numbers[name] != value:
                raise ValueError(f"codec.config.{name} {self.numbers[name]}: {type(self).__name__} is for {value} only")

    def _keep_first(self, wanted: int) -> set[str]:
        """Remove the network's codebooks after the first `wanted` and return the names of the removed tensors."""
        lists = self.quantizers()
        has = sum(map(len, lists))
        if not 1 <= wanted <= has:
            raise ValueError(f"codec.num_codebooks {wanted}: this codec has {has} (choices: 1 to {has})")
        names = set(self.state_dict())
        before = itertools.accumulate(map(len, lists), initial=0)
        for layers, first in zip(lists, before, strict=False):
            del layers[max(0, wanted - first) :]
        return names - set(self.state_dict())

    def _used(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in stored.items() if name not in self._unused}
