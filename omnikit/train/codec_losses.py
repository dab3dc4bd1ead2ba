"""Losses and data-dependent initialisation for training a small SNAC codec without an adversary.

Letters: B batch, N samples, D width, T latent frames, C codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from snac import SNAC
from snac.vq import VectorQuantize
from torch import Tensor, nn
from torch.nn import functional

from omnikit.codecs.mel_rvq import kmeans, mel_filters

SILENT = 1e-3
"""Floor of spectral amplitudes (1 is a full-scale sine): differences below it do not count."""


class SpectralLoss(nn.Module):
    """Spectral distance of two waveforms: log-mel, log and linear magnitudes, averaged over several window lengths.

    A log-mel distance alone does not constrain the harmonics: noise in place of a voice nearly minimises it.

    Args:
        sample_rate: in Hz.
        windows: window lengths in samples; the hop is a quarter of the length.
        n_mels: number of mel bands for each window length.
    """

    def __init__(self, sample_rate: int, *, windows: Sequence[int], n_mels: Sequence[int]):
        super().__init__()
        self.windows = list(windows)
        for length, bands in zip(windows, n_mels, strict=True):
            self.register_buffer(f"window{length}", torch.hann_window(length))
            filters = torch.from_numpy(mel_filters(sample_rate, length, bands)).float()
            self.register_buffer(f"filters{length}", filters[:, filters.any(dim=0)])

    def forward(self, wav: Tensor, target: Tensor) -> Tensor:
        """Return the scalar spectral distance of waveforms [B, N] from target waveforms [B, N]."""
        return sum(self._at(length, wav, target) for length in self.windows) / len(self.windows)

    def _at(self, length: int, wav: Tensor, target: Tensor) -> Tensor:
        ours, theirs = (self._magnitudes(length, signal) for signal in (wav, target))
        filters = self.get_buffer(f"filters{length}")
        log_ours, log_theirs = ((m @ filters).clamp(min=SILENT).log() for m in (ours, theirs))
        convergence = (ours - theirs).norm() / theirs.norm().clamp(min=SILENT)
        fine = functional.l1_loss(ours.clamp(min=SILENT).log(), theirs.clamp(min=SILENT).log())
        return functional.l1_loss(log_ours, log_theirs) + fine + convergence

    def _magnitudes(self, length: int, wav: Tensor) -> Tensor:
        window = self.get_buffer(f"window{length}")
        spectrum = torch.fft.rfft(wav.unfold(-1, length, length // 4) * window)
        power = spectrum.real.square() + spectrum.imag.square()
        return (power + 1e-8).sqrt() * (2 / window.sum())


def quantise(snac: SNAC, latent: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Quantise a latent with SNAC's residual quantiser and compute its codebook and commitment losses.

    Args:
        latent: encoder output [B, D, T].

    Returns:
        Quantised latent [B, D, T]; codebook loss + 0.25 commitment loss, mean over codebooks (van den Oord et al.
        2017, eq. 3); codes [B, T / stride] per codebook.
    """
    total, loss, codes, rest = 0.0, 0.0, [], latent
    for quantizer in snac.quantizer.quantizers:
        out, index = quantizer(rest)
        loss = loss + _quantiser_loss(quantizer, rest, index)
        total, rest = total + out, rest - out
        codes.append(index)
    return total, loss / len(codes), codes


def _quantiser_loss(quantizer: VectorQuantize, rest: Tensor, index: Tensor) -> Tensor:
    projected, chosen = _projected(quantizer, rest), quantizer.decode_code(index)
    return functional.mse_loss(chosen, projected.detach()) + 0.25 * functional.mse_loss(projected, chosen.detach())


def _projected(quantizer: VectorQuantize, rest: Tensor) -> Tensor:
    """Return a latent [B, D, T] projected to the dimension of the codebook, [B, codebook_dim, T / stride]."""
    return quantizer.in_proj(functional.avg_pool1d(rest, quantizer.stride, quantizer.stride))


@torch.no_grad()
def start_from_data(snac: SNAC, wav: Tensor, seed: int = 0) -> None:
    """Initialise a SNAC network from training audio: layers of unit variance and codebooks from k-means.

    With the initialisation of the `snac` package, a network this small produces noise for a long time.

    Args:
        wav: batch of training audio [B, N] with N a multiple of the frame; about a thousand latent frames or more.
        seed: of the random generator of k-means.
    """
    with unit_outputs(snac.encoder):
        latent = snac.encoder(wav[:, None])
    rng, rest = torch.Generator().manual_seed(seed), latent
    for quantizer in snac.quantizer.quantizers:
        _start_quantiser(quantizer, rest, rng)
        rest = rest - quantizer(rest)[0]
    with unit_outputs(snac.decoder, last=wav.std()):
        snac.decoder(latent - rest)


@contextmanager
def unit_outputs(network: nn.Module, last: float | Tensor = 1.0) -> Iterator[None]:
    """Scale each convolution of a network so that its output has standard deviation 1, and set its bias to 0.

    The scaling happens in forward hooks while a batch runs through the network in the `with` block. This is
    layer-sequential unit variance (Mishkin & Matas 2016) in one pass: each layer's input is already scaled.

    Args:
        last: standard deviation of the last convolution's output.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)]

    def scale(layer: nn.Module, _: object, out: Tensor) -> Tensor:
        if layer.bias is not None:
            out = out - layer.bias[:, None]
            layer.bias.zero_()
        factor = (last if layer is layers[-1] else 1.0) / out.std().clamp(min=1e-6)
        layer.parametrizations.weight.original0.mul_(factor)
        return out * factor

    hooks = [layer.register_forward_hook(scale) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _start_quantiser(quantizer: VectorQuantize, rest: Tensor, rng: torch.Generator) -> None:
    """Initialise a quantiser from the residual [B, D, T]: projections from PCA, codebook vectors from k-means."""
    pooled = functional.avg_pool1d(rest, quantizer.stride, quantizer.stride)
    points = pooled.transpose(1, 2).flatten(0, 1)
    directions = torch.linalg.eigh(points.T.cov()).eigenvectors[:, -quantizer.codebook_dim :]
    _set_weight(quantizer.in_proj, directions.T)
    _set_weight(quantizer.out_proj, directions)
    size = min(quantizer.codebook_size, len(points))
    quantizer.codebook.weight[:size] = kmeans(points @ directions, size, 10, rng)


def _set_weight(layer: nn.Module, weight: Tensor) -> None:
    layer.parametrizations.weight.original0.copy_(weight.norm(dim=1)[:, None, None])
    layer.parametrizations.weight.original1.copy_(weight[..., None])
    layer.bias.zero_()


@torch.no_grad()
def revive_unused(snac: SNAC, latent: Tensor, used: Sequence[Tensor]) -> int:
    """Replace the vectors of unused codes by random projected latents and return the number of replaced codes.

    Args:
        latent: encoder output [B, D, T] from which the new vectors are drawn.
        used: for each codebook, whether each code occurred recently [C].
    """
    revived, rest = 0, latent
    for quantizer, alive in zip(snac.quantizer.quantizers, used, strict=True):
        points = _projected(quantizer, rest).transpose(1, 2).flatten(0, 1)
        dead = torch.nonzero(~alive)[:, 0]
        quantizer.codebook.weight[dead] = points[torch.randint(len(points), (len(dead),))]
        rest = rest - quantizer(rest)[0]
        revived += len(dead)
    return revived
