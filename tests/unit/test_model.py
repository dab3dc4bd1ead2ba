"""Test embeddings, losses and freezing of the model against slow, obvious reference computations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from omnikit.losses import StreamLabels, label_weights, step_loss, stream_losses
from omnikit.model import AdaptedSpeech
from omnikit.tokens import IGNORE
from tests.unit.toy import toy_model


def random_steps(model, batch: int = 3, length: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack(
        [torch.randint(0, size, (batch, length), generator=generator) for size in model.layout.sizes], dim=1
    )


@pytest.mark.parametrize("pattern", ["delayed", "flattened"])
def test_embedding_is_the_mean_over_streams_with_speech_in_the_audio_streams(pattern):
    model = toy_model(pattern)
    steps, dim = random_steps(model), model.llm.dim
    features = torch.randn(3, 4, dim)
    speech = AdaptedSpeech(features, torch.tensor([4, 0, 2]), torch.tensor([1, 1, 3]))
    streams, vocab = model.layout.num_streams, model.llm.vocab_size
    expected = torch.zeros(3, 8, dim)
    for b in range(3):
        for position in range(8):
            token = int(steps[b, 0, position])
            known = token < vocab
            table = model.llm.trunk.embed_tokens if known else model.new_text_embeddings.embed
            total = table.weight[token if known else token - vocab].clone()
            for s in range(1, streams):
                at = position - int(speech.starts[b])
                if 0 <= at < int(speech.lengths[b]):
                    total += features[b, at]
                else:
                    shift = sum(model.layout.sizes[1:s])
                    total += model.new_audio_embeddings.embed.weight[int(steps[b, s, position]) + shift]
            expected[b, position] = total / streams
    assert torch.allclose(model.embed(steps, speech), expected, atol=1e-6)


@pytest.mark.parametrize("tts_blocks", [0, 1])
def test_loss_equals_cross_entropy_of_each_stream_on_its_own(tts_blocks):
    model = toy_model(tts_blocks=tts_blocks)
    steps = random_steps(model)
    labels = random_steps(model).masked_fill(torch.rand(3, model.layout.num_streams, 8) < 0.5, IGNORE)
    labels[:, 2] = IGNORE
    hidden = model(steps)
    weights = torch.arange(1.0, model.layout.num_streams + 1)
    loss, got = stream_losses(
        model, hidden, StreamLabels.of(labels), label_weights((labels != IGNORE).sum(dim=(0, 2))[None], weights)
    )
    logits = [model.text_logits(hidden.text), *model.audio_logits(hidden.audio)]
    for s, each in enumerate(logits):
        assert got.counts[0, s] == (labels[:, s] != IGNORE).sum()
        if s == 2:
            assert got.counts[0, s] == got.sums[0, s] == got.means()[s] == 0
        else:
            twin = functional.cross_entropy(each.flatten(0, 1), labels[:, s].flatten(), ignore_index=IGNORE)
            assert torch.allclose(got.means()[s], twin, atol=1e-5)
    present = [s for s in range(model.layout.num_streams) if s != 2]
    twin = sum(got.means()[s] * weights[s] for s in present) / sum(weights[s] for s in present)
    assert torch.allclose(loss, twin) and torch.allclose(step_loss(model, hidden, labels, weights), twin)


def test_frozen_parts_stay_bit_identical():
    model = toy_model(tts_blocks=1).train()
    trainable = ["adapter", "tts_adapter", "new_text_embeddings", "new_audio_embeddings"]
    model.freeze_all_but(trainable)
    before = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in model.parts().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    adapted = model.adapter(torch.randn(3, 6, model.encoder.dim), torch.tensor([6, 6, 6]))
    hidden = model(random_steps(model), AdaptedSpeech(*adapted, torch.ones(3, dtype=torch.long)))
    step_loss(model, hidden, random_steps(model)).backward()
    optimizer.step()
    for name, part in model.parts().items():
        same = all(torch.equal(v, before[name][k]) for k, v in part.state_dict().items())
        assert same == (name not in trainable or not before[name]), name


def test_frozen_parts_stay_in_evaluation_mode():
    model = toy_model(tts_blocks=1)
    model.freeze_all_but(["adapter", "new_text_embeddings"])
    nn.ModuleList([model]).train()  # as SpeechBrain's Brain does
    modes = {name: {module.training for module in part.modules()} for name, part in model.parts().items()}
    assert modes == {name: {name in ("adapter", "new_text_embeddings")} for name in model.parts()}


def test_what_cannot_train():
    with pytest.raises(ValueError, match="heads: no such part; choices: adapter, llm"):
        toy_model().freeze_all_but(["heads"])
    for part in ("encoder", "codec"):
        with pytest.raises(ValueError, match=f"{part}: stays frozen.*; choices: adapter, llm"):
            toy_model().freeze_all_but(["adapter", part])
