"""Streaming for decoders of centred convolutions (SNAC, DAC), in which every sample is computed once.

Each layer keeps the end of its input and gives what no later input can change, so the layers' lags add up to that of
the decoder; at the end, the zeros that pad the whole are put behind the last input. All memory lies in the stream.

Letters: B batch, K codebooks, D channels, n positions of a piece, N samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from omnikit.codecs.position_noise import PositionNoise
from omnikit.interfaces import Codec
from omnikit.limits import check_count
from omnikit.streaming import LOW_LATENCY, DecodeStream, check_mode

FADE = 0.0025
"""Seconds in which a low-latency stream goes from what it took for the future to what has come."""
WINDOWED = ("snac.attention.LocalMHA",)
_DAC = "transformers.models.dac.modeling_dac"
RESIDUAL = ("snac.layers.ResidualUnit", f"{_DAC}.DacResidualUnit")
SNAKE = ("snac.layers.Snake1d", f"{_DAC}.Snake1d")
"""Classes of layers by name, so that neither package is imported for the other's codec."""


class CentredDecoder:
    """What the streams over one decoder have in common.

    Args:
        layers: of the decoder, in their order. Attention within windows may come before the first upsampling.
        latents: codes [B, K, T] -> the decoder's input [B, D, T * positions], each frame by itself.
        frame_samples: samples per frame.
    """

    def __init__(self, layers: Sequence[nn.Module], latents: Callable[[Tensor], Tensor], frame_samples: int):
        windowed = [number for number, layer in enumerate(layers, start=1) if _is(layer, WINDOWED)]
        split = max(windowed, default=0)
        window = layers[split - 1].window_size if windowed else 1
        self.front, self.back, self.latents, self.frame_samples = layers[:split], layers[split:], latents, frame_samples
        self.lag = -final_outputs(self.back, 0)  # samples
        self.positions = frame_samples // (final_outputs(self.back, 1) + self.lag)  # of the input, per frame
        self.align = math.lcm(self.positions, window) // self.positions  # frames that are whole windows
        check_count("codec: frames that make whole windows of its attention:", self.align)
        self.lookahead = max(
            frames * frame_samples - final_outputs(layers, frames * self.positions) for frames in range(self.align)
        )
        self._folded: Mapping[nn.Module, Tensor] = {}
        self._folded_from: list[tuple[int, int]] | None = None

    def stream(self, codec: Codec, batch_size: int, mode: str) -> DecodeStream:
        check_mode(mode)
        exact = CentredStream(codec, self, batch_size)
        return LowLatencyStream(codec, exact) if mode == LOW_LATENCY else exact

    def positions_for(self, samples: int) -> int:
        """Positions behind the windows, without which so many samples are not final."""
        return math.ceil((samples + self.lag) * self.positions / self.frame_samples)

    @torch.no_grad()
    def folded(self) -> Mapping[nn.Module, Tensor]:
        """`weights_of` the convolutions: once, and again when torch counts a change of theirs.

        The layers themselves stay as they are: they can be trained on and are saved under the same names.
        """
        layers = _convolutions([*self.front, *self.back])
        parameters = [parameter for layer in layers for parameter in layer.parameters()]
        changes = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        if changes != self._folded_from:
            self._folded, self._folded_from = weights_of(layers), changes
        return self._folded


class CentredStream(DecodeStream):
    """Gives each sample as soon as no further frame can change it."""

    def __init__(self, codec: Codec, decoder: CentredDecoder, batch_size: int):
        self.codec, self.decoder, self.batch_size = codec, decoder, batch_size
        weights = decoder.folded()
        self.front, self.back = Pieces(decoder.front, weights), Pieces(decoder.back, weights)
        self.last: Tensor | None = None  # latents of the last frame
        self.frames = self.positions = self.samples = 0  # that are in, behind the windows, and final

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        self.codec.check_codes(codes)
        if not codes.shape[-1]:
            return torch.zeros(self.batch_size, 0, device=codes.device)
        x = self.decoder.latents(codes)
        self.last, self.frames = x[..., -self.decoder.positions :], self.frames + codes.shape[-1]
        x = self.front.push(x)
        wav = self.back.push(x)[:, 0]
        self.positions, self.samples = self.positions + x.shape[-1], self.samples + wav.shape[-1]
        return wav

    @torch.no_grad()
    def finish(self) -> Tensor:
        if self.last is None:
            return torch.zeros(self.batch_size, 0)
        due = self.frames * self.decoder.frame_samples
        needed, (x, there) = self.decoder.positions_for(due), self._end(self.front)
        wav = self.back.push(x[..., : needed - self.positions], last=needed >= there)[:, 0, : due - self.samples]
        return functional.pad(wav, (0, due - self.samples - wav.shape[-1]))

    @torch.no_grad()
    def ahead(self, until: int) -> Tensor:
        """From the first sample that is not final to sample `until` of the whole [B, N], as they would be if the
        frames ended here and zeros followed. The stream stays where it is."""
        needed, known = self.decoder.positions_for(until), self.frames * self.decoder.positions
        x, _ = self._end(self.front.copy())
        x = functional.pad(x[..., : known - self.positions], (0, needed - known))
        return self.back.copy().push(x)[:, 0, : until - self.samples]

    def _end(self, front: Pieces) -> tuple[Tensor, int]:
        """What comes out behind the windows if there are no more frames, the last window filled with the last frame
        [B, D, n]; and how many positions that makes in all."""
        filling = -self.frames % self.decoder.align
        x = front.push(self.last.repeat(1, 1, filling), last=True)
        return x, (self.frames + filling) * self.decoder.positions


class LowLatencyStream(DecodeStream):
    """Gives as many samples as the frames given to it cover, always.

    Where they are not known yet, they are those of a decoding of the codes so far, behind which zeros follow (on speech
    and `snac_mini` this came closer than holding the last frame or position, and the fade cost little). When further
    codes come, that decoding goes on for `FADE` and fades into the next one, so that there is no click.
    """

    def __init__(self, codec: Codec, exact: CentredStream):
        self.exact, self.frame_samples = exact, codec.frame_samples
        self.rise = rising(max(1, min(codec.frame_samples, round(FADE * codec.sample_rate))))
        self.expected: Tensor | None = None  # how the sound given out would go on

    def push(self, codes: Tensor) -> Tensor:
        given, start = self.exact.frames * self.frame_samples, self.exact.samples
        final = self.exact.push(codes)
        if not codes.shape[-1]:
            return final
        fade, until = len(self.rise), self.exact.frames * self.frame_samples
        wav = torch.cat([final, self.exact.ahead(until + fade)], dim=-1)[:, given - start :]
        if self.expected is not None:
            faded = torch.lerp(self.expected, wav[:, :fade], self.rise.to(wav))
            wav = torch.cat([faded, wav[:, fade:]], dim=-1)
        self.expected = wav[:, -fade:]
        return wav[:, :-fade]

    def finish(self) -> Tensor:
        """Nothing: all samples were given."""
        return torch.zeros(self.exact.batch_size, 0) if self.expected is None else self.expected[:, :0]


class Pieces:
    """Layers, one after another, whose input comes in pieces.

    Args:
        weights: `weights_of` the convolutions in them.
    """

    def __init__(self, layers: Sequence[nn.Module], weights: Mapping[nn.Module, Tensor]):
        self.layers, self.weights = layers, weights
        self.memory: dict[nn.Module, Any] = {}  # its tensors are replaced, never changed

    def copy(self) -> Pieces:
        other = Pieces(self.layers, self.weights)
        other.memory = dict(self.memory)
        return other

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """The next piece [B, D, n] -> the outputs [B, D', n'] that are final now, all that are due with the last."""
        return self._run(self.layers, x, last)

    def _run(self, layers: Iterable[nn.Module], x: Tensor, last: bool) -> Tensor:
        for layer in layers:
            x = self._step(layer, x, last)
        return x

    def _step(self, layer: nn.Module, x: Tensor, last: bool) -> Tensor:
        if isinstance(layer, nn.Conv1d):
            return self._convolve(layer, x, last)
        if isinstance(layer, nn.ConvTranspose1d):
            return self._upsample(layer, x, last)
        if _is(layer, WINDOWED):
            return self._attend(layer, x)
        if isinstance(layer, PositionNoise):
            return self._add_noise(layer, x, last)
        if _is(layer, RESIDUAL):
            return self._add(layer, x, last)
        if next(layer.children(), None) is not None:
            return self._run(layer.children(), x, last)
        if _is(layer, SNAKE):
            return _snake(x, layer.alpha)
        return layer(x) if x.shape[-1] else x  # another activation: no memory

    def _convolve(self, layer: nn.Conv1d, x: Tensor, last: bool) -> Tensor:
        zeros = x.new_zeros(*x.shape[:2], layer.padding[0])
        x = torch.cat([self.memory.get(layer, zeros), x, *([zeros] if last else [])], dim=-1)
        outputs = max(0, x.shape[-1] - _span(layer))
        self.memory[layer] = x[..., outputs:].clone()
        if not outputs:
            return x.new_zeros(len(x), layer.out_channels, 0)
        return functional.conv1d(x, self.weights[layer], layer.bias, dilation=layer.dilation, groups=layer.groups)

    def _upsample(self, layer: nn.ConvTranspose1d, x: Tensor, last: bool) -> Tensor:
        """Remembered are the outputs to which further inputs add, and how many at the start are padding."""
        (kernel,), (stride,), (padding,) = layer.kernel_size, layer.stride, layer.padding
        begun = x.new_zeros(len(x), layer.out_channels, kernel - stride)
        skip, begun = self.memory.get(layer, (padding, begun))
        if final := x.shape[-1] * stride:
            size = (1, final + kernel - stride)
            y = functional.fold(self.weights[layer] @ x, size, (1, kernel), stride=(1, stride))[:, :, 0]
            y[..., : begun.shape[-1]] += begun
        else:
            y = begun.clone()
        end = y.shape[-1] - padding + layer.output_padding[0] if last else final
        out = y[..., :end]
        dropped = min(skip, out.shape[-1])
        self.memory[layer] = skip - dropped, y[..., final:].clone()
        out = out[..., dropped:]
        return out if layer.bias is None else out.add_(layer.bias[:, None])

    def _attend(self, layer: nn.Module, x: Tensor) -> Tensor:
        x = torch.cat([self.memory.get(layer, x[..., :0]), x], dim=-1)
        whole = x.shape[-1] // layer.window_size * layer.window_size
        self.memory[layer] = x[..., whole:].clone()
        return layer(x[..., :whole]) if whole else x[..., :0]

    def _add_noise(self, layer: PositionNoise, x: Tensor, last: bool) -> Tensor:
        first = self.memory.get(layer, 0)
        self.memory[layer] = first + x.shape[-1]
        return self._step(layer.linear, x, last).mul_(layer.noise(x, first)).add_(x)

    def _add(self, unit: nn.Module, x: Tensor, last: bool) -> Tensor:
        y = self._run(unit.children(), x, last)
        x = torch.cat([self.memory.get(unit, x[..., :0]), x], dim=-1)
        self.memory[unit] = x[..., y.shape[-1] :].clone()
        return y.add_(x[..., : y.shape[-1]])


def weights_of(convolutions: Iterable[nn.Module]) -> dict[nn.Module, Tensor]:
    """Their weights, weight norm multiplied out.

    Those that upsample are laid out as [outputs * kernel, inputs]: with as few positions as a stream has, a product
    takes a third of the time then. Their channels are not in groups.
    """
    return {
        layer: layer.weight.flatten(1).t().contiguous() if isinstance(layer, nn.ConvTranspose1d) else layer.weight
        for layer in convolutions
    }


def final_outputs(layers: Iterable[nn.Module], inputs: int) -> int:
    """How many outputs so many inputs settle; below zero where the first is not among them."""
    for layer in layers:
        if isinstance(layer, nn.Conv1d):
            inputs -= _span(layer) - layer.padding[0]
        elif isinstance(layer, nn.ConvTranspose1d):
            inputs = inputs * layer.stride[0] - layer.padding[0]
        elif _is(layer, WINDOWED):
            inputs = inputs // layer.window_size * layer.window_size
        else:
            inputs = final_outputs(layer.children(), inputs)
    return inputs


def rising(length: int) -> Tensor:
    """Half a period of a cosine from near 0 to near 1 [length]."""
    return (1 - torch.cos(math.pi * (torch.arange(length) + 0.5) / length)) / 2


def _convolutions(layers: Iterable[nn.Module]) -> list[nn.Module]:
    inner = itertools.chain.from_iterable(layer.modules() for layer in layers)
    return [layer for layer in inner if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)]


def _snake(x: Tensor, alpha: Tensor) -> Tensor:
    """x + sin(alpha x)^2 / alpha as both packages have it, with one new tensor for the four that they make."""
    y = alpha * x
    return y.sin_().square_().mul_((alpha + 1e-9).reciprocal()).add_(x)


def _is(layer: nn.Module, classes: tuple[str, ...]) -> bool:
    """Return whether a layer is of one of these classes."""
    return f"{type(layer).__module__}.{type(layer).__qualname__}" in classes


def _span(layer: nn.Conv1d) -> int:
    """Inputs that an output needs, but for the first."""
    return (layer.kernel_size[0] - 1) * layer.dilation[0]
