"""Streaming for decoders of centred convolutions (SNAC, DAC), in which every sample is computed once.

Each layer keeps the end of its input and gives what no later input can change, so the layers' lags add up to that of
the decoder; at the end, the zeros that pad the whole are put behind the last input. All memory lies in the stream; its
shapes follow from how many frames came, however they were cut.

Letters: B batch, K codebooks, D channels, n positions of a piece, N samples.
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

    def stream(self, codec: Codec, batch_size: int, mode: str) -> JoinableStream:
        check_mode(mode)
        exact = CentredStream(codec, self, batch_size)
        return LowLatencyStream(codec, exact) if mode == LOW_LATENCY else exact

    def positions_for(self, samples: int) -> int:
        """Positions behind the windows, without which so many samples are not final. A frame more needs as many
        positions more as it has."""
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


class CentredStream(JoinableStream):
    """Gives each sample as soon as no further frame can change it."""

    rows = ("nothing", "front", "back", "last")
    recordable = True

    def __init__(self, codec: Codec, decoder: CentredDecoder, batch_size: int):
        self.codec, self.decoder = codec, decoder
        self.nothing = next(codec.parameters()).new_zeros(batch_size, 0)
        weights = decoder.folded()
        self.front, self.back = Pieces(decoder.front, weights), Pieces(decoder.back, weights)
        self.last: Tensor | None = None  # latents of the last frame
        self.begun = False  # whether a sample was given
        self.over = 0  # frames behind the last one that ended where a window does
        self.pending = self.owed = 0  # positions that are not behind the windows, and samples that are not final

    def state(self) -> Hashable:
        """Once every layer has given something, only where the frames stand among the windows makes a difference."""
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
        """From the first sample that is not final to some further than the frames go [B, N], as they would be if the
        frames ended here and zeros followed. The stream stays where it is."""
        x = self._end(self.front.copy())[..., : self.pending]
        x = functional.pad(x, (0, self.decoder.positions_for(further)))
        return self.back.copy().push(x)[:, 0, : self.owed + further]

    def _end(self, front: Pieces) -> Tensor:
        """What comes out behind the windows if there are no more frames, the last window filled with the last frame
        [B, D, n]."""
        return front.push(self.last.repeat(1, 1, -self.over % self.decoder.align), last=True)


class LowLatencyStream(JoinableStream):
    """Gives as many samples as the frames given to it cover, always.

    Where they are not known yet, they are those of a decoding of the codes so far, behind which zeros follow (on speech
    and `snac_mini` this came closer than holding the last frame or position, and the fade cost little). When further
    codes come, that decoding goes on for `FADE` and fades into the next one, so that there is no click.
    """

    rows = ("nothing", "exact", "expected")
    recordable = True

    def __init__(self, codec: Codec, exact: CentredStream):
        self.exact, self.nothing = exact, exact.nothing
        self.rise = rising(max(1, min(codec.frame_samples, round(FADE * codec.sample_rate)))).to(self.nothing)
        self.expected: Tensor | None = None  # how the sound given out would go on

    def state(self) -> Hashable:
        return self.exact.state()

    def push(self, codes: Tensor) -> Tensor:
        self.exact.codec.check_codes(codes)
        return self.advance(codes)

    def advance(self, codes: Tensor) -> Tensor:
        given, fade = self.exact.owed, len(self.rise)  # samples that are not final but were given
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
        """Nothing: all samples were given."""
        return self.nothing


class Pieces(Joinable):
    """Layers, one after another, whose input comes in pieces.

    Args:
        weights: `weights_of` the convolutions in them.
    """

    rows = ("memory",)

    def __init__(self, layers: Sequence[nn.Module], weights: Mapping[nn.Module, Tensor]):
        self.layers, self.weights = layers, weights
        self.memory: dict[nn.Module, Any] = {}  # its tensors are replaced, never changed
        self.goes_on = True  # whether what the next piece needs is remembered

    def copy(self) -> Pieces:
        """Return layers in the same state, for one further piece."""
        other = Pieces(self.layers, self.weights)
        other.memory, other.goes_on = dict(self.memory), False
        return other

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """The next piece [B, D, n] -> the outputs [B, D', n'] that are final now, all that are due with the last."""
        return self._run(self.layers, x, last)

    def _remember(self, layer: nn.Module, kept: Tensor, skip: int | None = None) -> None:
        """Keep what a layer needs for the next piece, its last inputs or outputs, and how many outputs to skip."""
        if self.goes_on:
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
        self._remember(layer, x[..., outputs:])
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
            # one product for all rows, so that the weights are read once
            y = (self.weights[layer] @ x.transpose(0, 1).flatten(1)).unflatten(1, (len(x), -1)).transpose(0, 1)
            y = functional.fold(y, size, (1, kernel), stride=(1, stride))[:, :, 0]
            y[..., : begun.shape[-1]] += begun
        else:
            y = begun.clone()
        end = y.shape[-1] - padding + layer.output_padding[0] if last else final
        out = y[..., :end]
        dropped = min(skip, out.shape[-1])
        self._remember(layer, y[..., final:], skip - dropped)
        out = out[..., dropped:]
        return out if layer.bias is None else out.add_(layer.bias[:, None])

    def _attend(self, layer: nn.Module, x: Tensor) -> Tensor:
        x = torch.cat([self.memory.get(layer, x[..., :0]), x], dim=-1)
        whole = x.shape[-1] // layer.window_size * layer.window_size
        self._remember(layer, x[..., whole:])
        return layer(x[..., :whole]) if whole else x[..., :0]

    def _add_noise(self, layer: PositionNoise, x: Tensor, last: bool) -> Tensor:
        first = self.memory.get(layer, torch.zeros(len(x), dtype=torch.int64, device=x.device))
        self.memory[layer] = first + x.shape[-1]
        return self._step(layer.linear, x, last).mul_(layer.noise(x, first)).add_(x)

    def _add(self, unit: nn.Module, x: Tensor, last: bool) -> Tensor:
        y = self._run(unit.children(), x, last)
        x = torch.cat([self.memory.get(unit, x[..., :0]), x], dim=-1)
        self._remember(unit, x[..., y.shape[-1] :])
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
