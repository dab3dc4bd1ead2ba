"""Tests of how audio codecs are trained: losses, initialisation from data and revived codes, with a small SNAC."""

from __future__ import annotations

import pytest
import torch
from snac import SNAC
from torch import nn

from omnikit.train.codec_losses import SpectralLoss, quantise, revive_unused, start_from_data, unit_outputs


def small_snac() -> SNAC:
    torch.manual_seed(0)
    return SNAC(
        sampling_rate=16000,
        encoder_dim=8,
        encoder_rates=[2, 4, 5],
        decoder_dim=32,
        decoder_rates=[5, 4, 2],
        attn_window_size=None,
        codebook_size=16,
        codebook_dim=4,
        vq_strides=[2, 1],
        noise=False,
    )


def speechlike(batch: int = 8, samples: int = 3200) -> torch.Tensor:
    """Return waveforms [B, N] of tones with a varying level."""
    rng = torch.Generator().manual_seed(0)
    time = torch.arange(samples) / 16000
    pitch, beat = 100 + 400 * torch.rand(batch, 1, generator=rng), 3 + 9 * torch.rand(batch, 1, generator=rng)
    return 0.3 * torch.sin(2 * torch.pi * pitch * time) * torch.sin(2 * torch.pi * beat * time)


def spectral() -> SpectralLoss:
    return SpectralLoss(16000, windows=[128, 256], n_mels=[10, 20])


def test_spectral_loss():
    loss, wav = spectral(), speechlike()
    assert loss(wav, wav) == 0
    assert loss(-wav, wav) == 0  # magnitudes do not depend on the sign
    assert 0 < loss(0.9 * wav, wav) < loss(0.5 * wav, wav) < loss(torch.zeros_like(wav), wav)


def test_quantise_is_the_package_quantiser():
    snac, latent = small_snac(), torch.randn(2, 64, 6)
    ours, loss, codes = quantise(snac, latent)
    theirs, their_codes = snac.quantizer(latent)
    assert torch.equal(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(codes, their_codes, strict=True))
    assert loss > 0


def test_quantiser_loss_is_zero_on_codes_and_moves_both_sides():
    snac = small_snac()
    _, loss, _ = quantise(snac, torch.randn(2, 64, 6, requires_grad=True))
    loss.backward()
    first = snac.quantizer.quantizers[0]
    assert first.codebook.weight.grad.abs().sum() > 0
    assert first.in_proj.parametrizations.weight.original1.grad.abs().sum() > 0


def test_unit_outputs():
    snac, wav = small_snac(), speechlike()
    before = snac.encoder(wav[:, None]).std()
    with torch.no_grad(), unit_outputs(snac.encoder, last=0.5):
        during = snac.encoder(wav[:, None])
    after = snac.encoder(wav[:, None])
    assert torch.allclose(after, during, atol=1e-4)
    assert abs(before - 0.5) > 0.1 and abs(after.std() - 0.5) < 1e-3
    assert not any(layer._forward_hooks for layer in snac.modules())


def test_start_from_data_wakes_the_network():
    """A codec initialised from data has outputs that depend on the input and uses many codes, unlike a random one."""

    def spread(snac: SNAC) -> float:
        with torch.no_grad():
            out = snac(speechlike()[:, None])[0]
        return (out.std(dim=0).mean() / out.std().clamp(min=1e-9)).item()

    snac = small_snac()
    untouched = spread(snac)
    start_from_data(snac, speechlike())
    assert spread(snac) > 0.3 and spread(snac) > untouched
    codes = quantise(snac, snac.encoder(speechlike()[:, None]))[2]
    assert all(len(level.unique()) >= 8 for level in codes)


def test_start_is_repeatable():
    first, second = small_snac(), small_snac()
    for snac in (first, second):
        start_from_data(snac, speechlike(), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_revive_moves_dead_codes_only():
    snac = small_snac()
    latent = snac.encoder(speechlike()[:, None]).detach()
    before = [q.codebook.weight.clone() for q in snac.quantizer.quantizers]
    used = [torch.arange(16) < 10, torch.ones(16, dtype=torch.bool)]
    assert revive_unused(snac, latent, used) == 6
    first, second = (q.codebook.weight for q in snac.quantizer.quantizers)
    assert torch.equal(first[:10], before[0][:10]) and not torch.equal(first[10:], before[0][10:])
    assert torch.equal(second, before[1])


@pytest.mark.parametrize("joint", [True, False])
def test_a_few_steps_lower_the_loss(joint):
    snac, wav, loss = small_snac(), speechlike(), spectral()
    start_from_data(snac, wav)
    if not joint:
        snac.encoder.requires_grad_(False)
        snac.quantizer.requires_grad_(False)
    kept = [parameter.clone() for parameter in snac.encoder.parameters()]
    optimizer = torch.optim.Adam([p for p in snac.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(15):
        latent, quantiser, _ = quantise(snac, snac.encoder(wav[:, None]))
        spectral_loss = loss(snac.decoder(latent)[:, 0], wav)
        (spectral_loss + 0.1 * quantiser).backward()
        nn.utils.clip_grad_norm_(snac.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(spectral_loss.item())
    assert losses[-1] < 0.85 * losses[0]
    same = all(torch.equal(a, b) for a, b in zip(kept, snac.encoder.parameters(), strict=True))
    assert same is not joint
