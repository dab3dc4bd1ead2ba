"""Streaming for decoders of centred convolutions (SNAC, DAC), in which every sample is computed once.

Each layer stores the end of its input and returns the outputs that no later input can change, so the decoder's lag is
the sum of the layers' lags. At the end, the zeros that pad a whole decoding follow the last input. All state is in the
decode stream; its shapes depend on the number of frames so far, but not on their division into chunks.

Letters: B batch, K codebooks, D channels, n positions of a chunk, N samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from omnikit.codecs.joined_streams import Joinable, JoinableStream
from omnikit.codecs.position_noise import PositionNoise
from omnikit.interfaces import Codec
from omnikit.size_limits import check_count
from omnikit.streaming import LOW_LATENCY, check_mode

FADE = 0.0025
"""Length in seconds of the cross-fade of a low-latency decode stream from estimated to decoded samples."""
WINDOWED_ATTENTION = ("snac.attention.LocalMHA",)
"""Names of the layer classes that attend within windows."""
_DAC = "transformers.models.dac.modeling_dac"
# layer classes are given by name, so that neither package is imported for the other's codec
RESIDUAL = ("snac.layers.ResidualUnit", f"{_DAC}.DacResidualUnit")
"""Names of the residual layer classes, which add the output of their inner layers to their input."""
SNAKE = ("snac.layers.Snake1d", f"{_DAC}.Snake1d")
"""Names of the classes that implement the snake activation function x + sin(alpha x)^2 / alpha."""


class CentredDecoder:
    """A decoder of centred convolutions, prepared for streaming: its layers, lags and folded weights.

    Args:
        layers: layers of the decoder in their order. Attention within windows may come before the first upsampling.
        latents: function from codes [B, K, T] to the decoder's input [B, D, T * positions], frame by frame.
        frame_samples: samples per frame.
    """

    def __init__(self, layers: Sequence[nn.Module], latents: Callable[[Tensor], Tensor], frame_samples: int):
        windowed = [number for number, layer in enumerate(layers, start=1) if _is(layer, WINDOWED_ATTENTION)]
        split = max(windowed, default=0)
        window = layers[split - 1].window_size if windowed else 1
        self.front, self.back, self.latents, self.frame_samples = layers[:split], layers[split:], latents, frame_samples
        self.lag = -final_outputs(self.back, 0)  # samples
        self.positions = frame_samples // (final_outputs(self.back, 1) + self.lag)  # input positions per frame
        self.align = math.lcm(self.positions, window) // self.positions  # least number of frames in whole windows
        check_count("codec: frames that make whole windows of its attention:", self.align)
        self.lookahead = max(
            frames * frame_samples - final_outputs(layers, frames * self.positions) for frames in range(self.align)
        )
        self._folded: Mapping[nn.Module, Tensor] = {}
        self._folded_from: list[tuple[int, int]] | None = None

    def stream(self, codec: Codec, batch_size: int, mode: str) -> JoinableStream:
        check_mode(mode)
        exact = CentredStream(codec, self, batch_size)
        return LowLatencyStream(codec, exact) if mode == LOW_LATENCY else exact

    def positions_for(self, samples: int) -> int:
        """Return how many outputs of the windowed attention are needed for the first `samples` samples to be final.

        For each further frame of samples it grows by the positions of a frame.
        """
        return math.ceil((samples + self.lag) * self.positions / self.frame_samples)

    @torch.no_grad()
    def folded(self) -> Mapping[nn.Module, Tensor]:
        """Return the weights of the decoder's convolutions (see `weights_of`), recomputed after a parameter change.

        The layers themselves are not changed: they can be trained further and are saved under the same names.
        """
        layers = _convolutions([*self.front, *self.back])
        parameters = [parameter for layer in layers for parameter in layer.parameters()]
        changes = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        if changes != self._folded_from:
            self._folded, self._folded_from = weights_of(layers), changes
        return self._folded


class CentredStream(JoinableStream):
    """A decode stream that returns each sample as soon as no later frame can change it."""

    rows = ("nothing", "front", "back", "last")
    recordable = True

    def __init__(self, codec: Codec, decoder: CentredDecoder, batch_size: int):
        self.codec, self.decoder = codec, decoder
        self.nothing = next(codec.parameters()).new_zeros(batch_size, 0)
        weights = decoder.folded()
        self.front, self.back = StreamedLayers(decoder.front, weights), StreamedLayers(decoder.back, weights)
        self.last: Tensor | None = None  # latents of the last frame
        self.begun = False  # whether a sample was returned
        self.over = 0  # frames since the last end of a window
        self.pending = self.owed = 0  # input positions that wait for a whole window, and samples that are not final

    def state(self) -> Hashable:
        """Return the key that is equal for decode streams that can be joined.

        Once every layer has returned output, it depends only on the position within the windows of attention.
        """
        return self.begun, self.over, self.pending, self.owed

    def push(self, codes: Tensor) -> Tensor:
        self.codec.check_codes(codes)
        return self.advance(codes)

    @torch.no_grad()
    def advance(self, codes: Tensor) -> Tensor:
        if not (frames := codes.shape[-1]):
            return self.nothing
        x = self.decoder.latents(codes)
        self.last, self.over = x[..., -self.decoder.positions :], (self.over + frames) % self.decoder.align
        y = self.front.push(x)
        wav = self.back.push(y)[:, 0]
        self.pending += x.shape[-1] - y.shape[-1]
        self.owed += frames * self.decoder.frame_samples - wav.shape[-1]
        self.begun = self.begun or wav.shape[-1] > 0
        return wav

    @torch.no_grad()
    def finish(self) -> Tensor:
        if self.last is None:
            return self.nothing
        needed, x = self.pending + self.decoder.positions_for(0), self._end(self.front)
        wav = self.back.push(x[..., :needed], last=needed >= x.shape[-1])[:, 0, : self.owed]
        return functional.pad(wav, (0, self.owed - wav.shape[-1]))

    @torch.no_grad()
    def ahead(self, further: int) -> Tensor:
        """Estimate the samples that are not final yet, and `further` samples beyond the frames so far [B, N].

        They are decoded as if there were no more frames and zeros followed. The state of the stream is not changed.
        """
        x = self._end(self.front.copy())[..., : self.pending]
        x = functional.pad(x, (0, self.decoder.positions_for(further)))
        return self.back.copy().push(x)[:, 0, : self.owed + further]

    def _end(self, front: StreamedLayers) -> Tensor:
        """End the windowed attention and return its remaining outputs [B, D, n].

        The last window is filled up with the last frame.
        """
        return front.push(self.last.repeat(1, 1, -self.over % self.decoder.align), last=True)


class LowLatencyStream(JoinableStream):
    """A decode stream that always returns as many samples as the frames so far cover.

    Samples that are not final are estimated by decoding the codes so far, followed by zeros (on speech and `snac_mini`
    this was closer than repeating the last frame or position, and the fade cost little). When further codes come, the
    estimate is continued for `FADE` and cross-faded into the new decoding, to avoid clicks.
    """

    rows = ("nothing", "exact", "expected")
    recordable = True

    def __init__(self, codec: Codec, exact: CentredStream):
        self.exact, self.nothing = exact, exact.nothing
        self.rise = rising(max(1, min(codec.frame_samples, round(FADE * codec.sample_rate)))).to(self.nothing)
        self.expected: Tensor | None = None  # continuation of the returned samples, for the cross-fade

    def state(self) -> Hashable:
        return self.exact.state()

    def push(self, codes: Tensor) -> Tensor:
        self.exact.codec.check_codes(codes)
        return self.advance(codes)

    def advance(self, codes: Tensor) -> Tensor:
        given, fade = self.exact.owed, len(self.rise)  # `given`: samples that were returned but are not final
        final = self.exact.advance(codes)
        if not codes.shape[-1]:
            return final
        wav = torch.cat([final, self.exact.ahead(fade)], dim=-1)[:, given:]
        if self.expected is not None:
            faded = torch.lerp(self.expected, wav[:, :fade], self.rise)
            wav = torch.cat([faded, wav[:, fade:]], dim=-1)
        self.expected = wav[:, -fade:]
        return wav[:, :-fade]

    def finish(self) -> Tensor:
        """Return no samples [B, 0]: a low-latency stream has returned all of them before."""
        return self.nothing


class StreamedLayers(Joinable):
    """A sequence of decoder layers that processes its input in chunks.

    Args:
        layers: layers in their order.
        weights: result of `weights_of` for the convolutions in the layers.
    """

    rows = ("memory",)

    def __init__(self, layers: Sequence[nn.Module], weights: Mapping[nn.Module, Tensor]):
        self.layers, self.weights = layers, weights
        self.memory: dict[nn.Module, Any] = {}  # its tensors are replaced, never changed, as copies share them
        self.stores_state = True  # False in a copy, which gets no further chunk

    def copy(self) -> StreamedLayers:
        """Return a copy in the same state that processes one chunk and leaves the state of the original unchanged."""
        other = StreamedLayers(self.layers, self.weights)
        other.memory, other.stores_state = dict(self.memory), False
        return other

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """Process the next chunk [B, D, n] and return the outputs [B, D', n'] that are now final.

        Args:
            x: chunk of the input.
            last: whether the input ends with this chunk, so that all remaining outputs are returned.
        """
        return self._run(self.layers, x, last)

    def _store(self, layer: nn.Module, kept: Tensor, skip: int | None = None) -> None:
        """Store a layer's state for the next chunk: its last inputs or outputs, and the number of outputs to skip."""
        if self.stores_state:
            self.memory[layer] = kept.clone() if skip is None else (skip, kept.clone())

    def _run(self, layers: Iterable[nn.Module], x: Tensor, last: bool) -> Tensor:
        for layer in layers:
            x = self._step(layer, x, last)
        return x

    def _step(self, layer: nn.Module, x: Tensor, last: bool) -> Tensor:
        if isinstance(layer, nn.Conv1d):
            return self._convolve(layer, x, last)
        if isinstance(layer, nn.ConvTranspose1d):
            return self._upsample(layer, x, last)
        if _is(layer, WINDOWED_ATTENTION):
            return self._attend(layer, x)
        if isinstance(layer, PositionNoise):
            return self._add_noise(layer, x, last)
        if _is(layer, RESIDUAL):
            return self._add(layer, x, last)
        if next(layer.children(), None) is not None:
            return self._run(layer.children(), x, last)
        if _is(layer, SNAKE):
            return _snake(x, layer.alpha)
        return layer(x) if x.shape[-1] else x  # another activation: no state

    def _convolve(self, layer: nn.Conv1d, x: Tensor, last: bool) -> Tensor:
        zeros = x.new_zeros(*x.shape[:2], layer.padding[0])
        x = torch.cat([self.memory.get(layer, zeros), x, *([zeros] if last else [])], dim=-1)
        outputs = max(0, x.shape[-1] - _span(layer))
        self._store(layer, x[..., outputs:])
        if not outputs:
            return x.new_zeros(len(x), layer.out_channels, 0)
        return functional.conv1d(x, self.weights[layer], layer.bias, dilation=layer.dilation, groups=layer.groups)

    def _upsample(self, layer: nn.ConvTranspose1d, x: Tensor, last: bool) -> Tensor:
        """Apply a transposed convolution to the next chunk.

        Its state is the outputs to which later inputs contribute, and the number of padding outputs still to skip.
        """
        (kernel,), (stride,), (padding,) = layer.kernel_size, layer.stride, layer.padding
        begun = x.new_zeros(len(x), layer.out_channels, kernel - stride)
        skip, begun = self.memory.get(layer, (padding, begun))
        if final := x.shape[-1] * stride:
            size = (1, final + kernel - stride)
            # one matrix product for all batch rows, so that the weights are read once
            y = (self.weights[layer] @ x.transpose(0, 1).flatten(1)).unflatten(1, (len(x), -1)).transpose(0, 1)
            y = functional.fold(y, size, (1, kernel), stride=(1, stride))[:, :, 0]
            y[..., : begun.shape[-1]] += begun
        else:
            y = begun.clone()
        end = y.shape[-1] - padding + layer.output_padding[0] if last else final
        out = y[..., :end]
        dropped = min(skip, out.shape[-1])
        self._store(layer, y[..., final:], skip - dropped)
        out = out[..., dropped:]
        return out if layer.bias is None else out.add_(layer.bias[:, None])

    def _attend(self, layer: nn.Module, x: Tensor) -> Tensor:
        x = torch.cat([self.memory.get(layer, x[..., :0]), x], dim=-1)
        whole = x.shape[-1] // layer.window_size * layer.window_size
        self._store(layer, x[..., whole:])
        return layer(x[..., :whole]) if whole else x[..., :0]

    def _add_noise(self, layer: PositionNoise, x: Tensor, last: bool) -> Tensor:
        first = self.memory.get(layer, torch.zeros(len(x), dtype=torch.int64, device=x.device))
        self.memory[layer] = first + x.shape[-1]
        return self._step(layer.linear, x, last).mul_(layer.noise(x, first)).add_(x)

    def _add(self, unit: nn.Module, x: Tensor, last: bool) -> Tensor:
        y = self._run(unit.children(), x, last)
        x = torch.cat([self.memory.get(unit, x[..., :0]), x], dim=-1)
        self._store(unit, x[..., y.shape[-1] :])
        return y.add_(x[..., : y.shape[-1]])


def weights_of(convolutions: Iterable[nn.Module]) -> dict[nn.Module, Tensor]:
    """Return the weights of convolutions, computed from their weight norm, by layer.

    Weights of transposed convolutions are laid out as [outputs * kernel, inputs]: with the few positions of a stream's
    chunk, the matrix product then takes a third of the time. Transposed convolutions must not be grouped.
    """
    return {
        layer: layer.weight.flatten(1).t().contiguous() if isinstance(layer, nn.ConvTranspose1d) else layer.weight
        for layer in convolutions
    }


def final_outputs(layers: Iterable[nn.Module], inputs: int) -> int:
    """Return the number of outputs of decoder layers that are final after `inputs` inputs.

    A negative number says how many more outputs are missing before the first one is final.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv1d):
            inputs -= _span(layer) - layer.padding[0]
        elif isinstance(layer, nn.ConvTranspose1d):
            inputs = inputs * layer.stride[0] - layer.padding[0]
        elif _is(layer, WINDOWED_ATTENTION):
            inputs = inputs // layer.window_size * layer.window_size
        else:
            inputs = final_outputs(layer.children(), inputs)
    return inputs


def rising(length: int) -> Tensor:
    """Return a raised-cosine fade-in [length], from near 0 to near 1."""
    return (1 - torch.cos(math.pi * (torch.arange(length) + 0.5) / length)) / 2


def _convolutions(layers: Iterable[nn.Module]) -> list[nn.Module]:
    inner = itertools.chain.from_iterable(layer.modules() for layer in layers)
    return [layer for layer in inner if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)]


def _snake(x: Tensor, alpha: Tensor) -> Tensor:
    """Compute the snake activation x + sin(alpha x)^2 / alpha; it allocates one tensor where snac allocates four."""
    y = alpha * x
    return y.sin_().square_().mul_((alpha + 1e-9).reciprocal()).add_(x)


def _is(layer: nn.Module, classes: tuple[str, ...]) -> bool:
    """Return whether the class of a layer has one of the given qualified names."""
    return f"{type(layer).__module__}.{type(layer).__qualname__}" in classes


def _span(layer: nn.Conv1d) -> int:
    """Return the receptive field of a convolution minus one.

    This is the distance between the first and the last input position that one output depends on.
    """
    return (layer.kernel_size[0] - 1) * layer.dilation[0]
