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
    codes = torch.randint(0, 10, (2, 3, 4))
    steps = pattern.interleave(codes)
    books = pattern.codebooks(steps.shape[-1])
    ids = layout.to_ids(steps, books)
    holes = (books < 0).expand_as(ids)
    assert (ids[holes] == layout.audio[0].pad).all()
    assert torch.equal(layout.to_codes(ids, books), steps)
    if len(layout.audio) == 1:
        expected = books * 10 + steps
        assert torch.equal(ids[~holes], expected[~holes])


@pytest.mark.parametrize("pattern", [Delayed(num_codebooks=3), Flattened(num_codebooks=3)])
def test_code_ids_are_those_of_the_codes(pattern):
    layout = layout_of(pattern, text_vocab=50, codebook_size=10)
    for step in range(pattern.num_steps(2)):
        books = torch.tensor(pattern.codebook_at(step))[:, None]
        for stream, book in enumerate(books[:, 0].tolist()):
            if book >= 0:
                found = [int(layout.to_ids(torch.full_like(books, code), books)[stream, 0]) for code in range(10)]
                assert found == list(layout.code_ids(stream, book))


def test_text_is_what_the_backbone_knows():
    layout = layout_of(Delayed(num_codebooks=2), text_vocab=50)
    ids = torch.tensor([[0, 49], [50, layout.text.asr]])
    assert layout.is_text(ids).tolist() == [[True, True], [False, False]]
