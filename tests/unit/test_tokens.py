"""Test the token ids that are derived from the tokenizer's and the codec's sizes."""

from __future__ import annotations

import pytest
import torch

from omnikit.patterns import Delayed, Flattened
from omnikit.tokens import TokenLayout


def layout_of(pattern, text_vocab=151936, codebook_size=4096) -> TokenLayout:
    return TokenLayout(text_vocab=text_vocab, codebook_size=codebook_size, carries=pattern.carries)


def test_published_numbers():
    layout = layout_of(Delayed(num_codebooks=7))
    assert layout.sizes == (152000, *[4160] * 7)
    assert layout.total == 181120
    assert layout.offsets[1:] == tuple(152000 + 4160 * k for k in range(7))
    assert (layout.text.eot, layout.text.pad, layout.text.asr) == (151936, 151937, 151940)
    assert (layout.audio[6].eoa, layout.audio[6].pad, layout.audio[6].split) == (4096, 4097, 4100)


def test_flattened_has_one_audio_stream():
    layout = layout_of(Flattened(num_codebooks=7), codebook_size=256)
    assert layout.num_streams == 2
    assert layout.sizes[1] == 7 * 256 + 64
    assert layout.audio[0].eoa == 7 * 256


@pytest.mark.parametrize("pattern", [Delayed(num_codebooks=3), Flattened(num_codebooks=3, text_lead=2)])
def test_ids_and_codes_are_inverse(pattern):
    layout = layout_of(pattern, text_vocab=50, codebook_size=10)
    codes = torch.randint(0, 10, (3, 4))
    ids = torch.from_numpy(layout.to_ids(codes.numpy()))
    steps = pattern.interleave(ids[None])[0]
    books = pattern.codebooks(steps.shape[-1])
    assert torch.equal(layout.to_codes(steps, books), pattern.interleave(codes[None])[0])
    assert torch.equal(ids, codes if len(layout.audio) > 1 else 10 * torch.arange(3)[:, None] + codes)


@pytest.mark.parametrize("pattern", [Delayed(num_codebooks=3), Flattened(num_codebooks=3)])
def test_code_ids_are_those_of_the_codes(pattern):
    layout = layout_of(pattern, text_vocab=50, codebook_size=10)
    ids = layout.to_ids(torch.arange(10, dtype=torch.int16).expand(3, 10).numpy())
    for stream, books in enumerate(layout.carries):
        for book in books:
            assert ids[book].tolist() == list(layout.code_ids(stream, book))


def test_ids_of_a_large_vocabulary_do_not_overflow():
    layout = layout_of(Flattened(num_codebooks=9))
    codes = torch.full((9, 2), 4095, dtype=torch.int16)
    assert layout.to_ids(codes.numpy())[:, 0].tolist() == [4096 * k + 4095 for k in range(9)]


def test_steps_of_special_tokens_are_made_once_and_kept_from_writers():
    layout = layout_of(Delayed(num_codebooks=2))
    assert layout.step("eot", "eoa") is layout.step("eot", "eoa")
    assert layout.step("eot", "eoa").tolist() == layout.ends(audio=True).tolist()
    with pytest.raises(ValueError, match="read-only"):
        layout.step("pad", "pad")[0] = 1
    layout.pads()[0] = 1
    assert layout.pads()[0] == layout.text.pad


def test_text_is_what_the_backbone_knows():
    layout = layout_of(Delayed(num_codebooks=2), text_vocab=50)
    ids = torch.tensor([[0, 49], [50, layout.text.asr]])
    assert layout.is_text(ids).tolist() == [[True, True], [False, False]]
