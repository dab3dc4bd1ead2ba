"""Tests that training on packed rows computes what training on one sample per row does, and where it is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from omnikit.data.collate import Batch, collate
from omnikit.data.micro_batch import MicroBatch
from omnikit.llms.transformers_lm import TransformersLM
from omnikit.model import OmniLM
from omnikit.tasks import TASKS, Sample, make_sample
from omnikit.train.activation_checkpointing import checkpoint_activations
from omnikit.train.compile_blocks import compile_blocks
from omnikit.train.packing import require_packed_rows
from tests.unit.llms.test_host_reads import HostReads
from tests.unit.qa_brain import brain_of, losses_of
from tests.unit.toy import PATTERNS, tokenizer_file, toy_model

DRAWN = (
    ("A1A2", 9, 12), ("T1T2", 2, 3), ("A1T1", 6, 2), ("T1A1", 3, 4), ("A1T1", 3, 4), ("A1A2", 2, 1), ("T1A2", 1, 2)
)  # fmt: skip
"""Task, length of the question in text ids or speech positions, and length of the answer, of the test samples."""


def drawn(model: OmniLM) -> tuple[list[Sample], list[Tensor | None]]:
    """Return samples of unequal lengths, of which the first is much longer than the others, and their features."""
    draw, samples, features = torch.Generator().manual_seed(0), [], []
    for name, given, answer in DRAWN:
        task, ids = TASKS[name], torch.randint(5, 60, (given + answer,), generator=draw).tolist()
        speech = task.given == "speech"
        codes = torch.randint(model.codec.codebook_size, (model.codec.num_codebooks, 2 * answer), generator=draw)
        question = {"audio_frames": given} if speech else {"question": ids[:given]}
        options = {"answer": ids[given:], "codes": codes if task.speaks else None}
        samples.append(make_sample(task, model.layout, model.pattern, **question, **options))
        features.append(torch.randn(given * model.adapter.stride, 12, generator=draw) if speech else None)
    return samples, features


def batches(model: OmniLM, order: Sequence[int] = range(len(DRAWN))) -> tuple[Batch, Batch]:
    """Return some of the test samples as a batch with one sample in each row, and packed."""
    samples, features = drawn(model)
    chosen = [samples[i] for i in order], [features[i] for i in order]
    steps = MicroBatch(), MicroBatch(packed=True)
    plain, packed = (collate(*chosen, model.layout, model.encoder.dim, step=step) for step in steps)
    assert len(packed.steps) < len(plain.steps)
    return plain, packed


def results(model: OmniLM, batch: Batch) -> dict[str, Tensor]:
    """Return objective, losses by task and stream, and gradients of a batch."""
    model.zero_grad()
    objective, losses = losses_of(brain_of(model), batch)
    objective.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "objective": objective.detach(), "sums": losses.sums, "counts": losses.counts}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and len(found) > 20
    for name, each in found.items():
        assert torch.allclose(each, expected[name], rtol=1e-5, atol=1e-5), name


def with_backbone(model_type: str, attention: str | None = "sdpa", tts_blocks: int = 1) -> OmniLM:
    """Return a toy model with a tiny backbone of another type; its window, if it has one, is 8 positions."""
    model, options = toy_model(), {"tokenizer": tokenizer_file(), "size": "tiny", "attention": attention}
    torch.manual_seed(0)
    model.llm = TransformersLM(config={"model_type": model_type}, **options).eval()
    model.tts_adapter = model.llm.blocks(tts_blocks).eval() if tts_blocks else None
    return model


@pytest.mark.parametrize("tts_blocks", [0, 1])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_losses_and_gradients_equal_those_of_one_sample_per_row(pattern, tts_blocks):
    model = toy_model(pattern, tts_blocks=tts_blocks)
    plain, packed = batches(model)
    speaking = packed.packed.sequences[:, None] == torch.tensor([0, 2, 4, 5])[:, None]
    assert (speaking.any(dim=2).sum(dim=1) > 1).any(), "no row has several samples with speech"
    assert_close(results(model, packed), results(model, plain))


@pytest.mark.parametrize(
    ("model_type", "attention"),
    [("qwen2", "eager"), ("mistral", "sdpa"), ("gemma2", "eager"), ("gemma3_text", "sdpa"), ("gpt2", "sdpa")],
)
def test_windows_and_other_kinds_of_attention_keep_samples_apart(model_type, attention):
    model = with_backbone(model_type, attention)
    require_packed_rows(model)
    plain, packed = batches(model)
    assert sum(sample.length > 8 for sample in drawn(model)[0]) > len(packed.steps)
    with torch.no_grad():
        one, other = (losses_of(brain_of(model), batch)[1] for batch in (packed, plain))
    assert torch.equal(one.counts, other.counts) and torch.allclose(one.sums, other.sums, rtol=1e-5)


def test_the_loss_of_a_sample_does_not_depend_on_its_neighbours():
    model, single = toy_model(tts_blocks=1), 4
    found = []
    for order in ([0, 3, single, 1], [single, 5, 2, 0, 1], [6, 0, single, 5]):
        _, batch = batches(model, order)
        number = order.index(single)
        with torch.no_grad():
            speech = batch.speech(*model.adapter(batch.features.float(), batch.lengths))
            hidden = model(batch.steps, speech, packed=batch.packed)
        own = batch.packed.sequences == number
        found.append((hidden.text[own], hidden.audio[own]))
    for text, audio in found[1:]:
        assert torch.allclose(text, found[0][0], atol=1e-5) and torch.allclose(audio, found[0][1], atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_and_checkpointed_blocks_compute_packed_rows(compiled, checkpointed):
    torch._dynamo.reset()
    model = toy_model(tts_blocks=1)
    plain, packed = batches(model)
    expected = results(model, plain)
    if compiled:
        compile_blocks(model, backend="eager")
    if checkpointed:
        checkpoint_activations(model)
    assert_close(results(model, packed), expected)


@pytest.mark.parametrize(("model_type", "attention"), [("qwen2", "sdpa"), ("mistral", "sdpa"), ("gemma2", "eager")])
def test_a_packed_step_reads_nothing_back_from_the_device(model_type, attention):
    model = with_backbone(model_type, attention)
    _, packed = batches(model)
    speech = packed.speech(*model.adapter(packed.features.float(), packed.lengths))
    with HostReads() as reads:
        hidden = model(packed.steps, speech, packed=packed.packed)
        (hidden.text.sum() + hidden.audio.sum()).backward()
    assert reads.found == []


@pytest.mark.parametrize(("model_type", "attention"), [("falcon", "sdpa"), ("mamba", None), ("qwen3_next", "sdpa")])
def test_a_backbone_that_sees_other_samples_is_refused(model_type, attention):
    model = with_backbone(model_type, attention, tts_blocks=0)
    with pytest.raises(ValueError, match=r"--pack true: \w+ .*; use another backbone, .* or --pack false") as error:
        require_packed_rows(model)
    assert "\n" not in str(error.value)


class OwnBackbone(nn.Module):
    dim = 4

    def forward(self, embeddings, positions, mask=None, cache=None):
        return embeddings


def test_an_own_backbone_without_the_argument_is_refused():
    model = toy_model()
    model.llm = OwnBackbone()
    with pytest.raises(ValueError, match="--pack true: OwnBackbone takes no packed rows"):
        require_packed_rows(model)


def test_a_recipe_that_does_not_pass_the_packing_on_is_refused():
    model = toy_model().train()
    require_packed_rows(model)
    assert model.training
    _, batch = batches(model)
    with pytest.raises(ValueError, match=r"compute_forward must pass packed=batch\.packed"):
        model(batch.steps)
    with torch.no_grad():
        model(batch.steps)  # validation and generation have one sequence in a row
    model(batch.steps, packed=batch.packed)
