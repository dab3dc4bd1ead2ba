"""Test that language models of each supported class, saved by transformers, give transformers' logits in omnikit."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from omnikit.hparams import build_part
from omnikit.llms.configs import make_config
from omnikit.llms.transformers_lm import TransformersLM

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
CLASSES = {
    "qwen2": {},
    "qwen2 sliding": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8},
    "qwen3": {},
    "llama": {},
    "llama 3": {"rope_parameters": LLAMA3},
    "mistral": {"sliding_window": 8},
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 2.0},
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "phi": {},
    "phi3": {"sliding_window": 8},
    "gpt2": {},
    "gpt_neox": {},
    "olmo2": {},
    "smollm3": {},
    "cohere2": {"logit_scale": 3.0},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "qwen3_next": {},
}
VOCAB, LENGTH = 300, 20


def write(folder, name: str, **numbers):
    """Save a language model with random weights, all of which affect its logits, in the format of transformers."""
    kind = name.split()[0]
    options = {"vocab_size": VOCAB, **CLASSES.get(name, {}), **numbers}
    config = make_config({"model_type": kind, **options}, vocab_size=VOCAB, size="tiny", attention=None)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1 if parameter.dim() == 1 else 0.0, 0.2)
    model.save_pretrained(folder)
    return model


def read(folder, **options) -> TransformersLM:
    model = build_part("llm", "any", weights=str(folder), tokenizer="bytes", **options).eval()
    model.load_weights()
    return model


def logits(model: TransformersLM, ids, positions, mask=None, cache=None) -> torch.Tensor:
    return model.head(model.final_norm(model(model.embed(ids), positions, mask, cache)))


@torch.inference_mode()
@pytest.mark.parametrize("name", CLASSES)
def test_logits_are_the_librarys(name, tmp_path):
    theirs, model = write(tmp_path, name), read(tmp_path)
    ids, places = torch.randint(0, VOCAB, (2, LENGTH)), torch.arange(LENGTH)[None].expand(2, -1)
    expected = theirs(ids).logits
    assert expected.std() > 0.01
    torch.testing.assert_close(logits(model, ids, places), expected, atol=1e-5, rtol=1e-5)
    for hidden in (slice(0, 5), slice(15, 20)):  # left and right padding
        mask = torch.ones_like(ids)
        mask[0, hidden] = 0
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        padded = theirs(ids, attention_mask=mask, position_ids=positions).logits
        inside = mask.bool()
        torch.testing.assert_close(logits(model, ids, positions, mask)[inside], padded[inside], atol=1e-5, rtol=1e-5)
    cache = model.new_cache()
    steps = [logits(model, ids[:, i : i + 1], places[:, i : i + 1], None, cache) for i in range(LENGTH)]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=5e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pad", [None, 0, 7])
def test_tied_or_not_with_a_pad_token_or_without(tied, pad, tmp_path):
    theirs = write(tmp_path, "llama", tie_word_embeddings=tied)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(json.dumps(json.loads(text) | {"pad_token_id": pad}))
    model = read(tmp_path)
    assert (model.lm_head.weight is model.trunk.get_input_embeddings().weight) == tied
    ids = torch.arange(LENGTH)[None]
    torch.testing.assert_close(logits(model, ids, ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_pads_row_trains_as_every_other(tmp_path):
    write(tmp_path, "gemma")
    model = read(tmp_path)
    model.embed(torch.tensor([0])).sum().backward()
    assert model.trunk.get_input_embeddings().weight.grad[0].abs().min() > 0


def test_half_precision_is_read_exactly(tmp_path):
    theirs = write(tmp_path, "llama").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    model = read(tmp_path)
    assert model.lm_head.weight.dtype == torch.float32
    assert model.lm_head.weight.equal(theirs.lm_head.weight.float())


def test_a_folder_of_another_family_or_with_other_names(tmp_path):
    write(tmp_path, "qwen3")
    llama = build_part("llm", "llama", size="tiny", tokenizer="bytes", weights=str(tmp_path))
    with pytest.raises(ValueError, match=r"model_type is qwen3, expected llama; vocab_size is 300, expected 256"):
        llama.load_weights()
    numbers = json.loads((tmp_path / "config.json").read_text())
    write(tmp_path, "llama")
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    with pytest.raises(ValueError, match=r"weights .*: model.layers.0.self_attn.k_norm.weight.* expected"):
        read(tmp_path)


def test_the_window_and_the_bound_must_fit(tmp_path):
    write(tmp_path, "gemma2")
    config = AutoConfig.from_pretrained(tmp_path).to_dict()
    for key, other in (("sliding_window", 4), ("final_logit_softcapping", 30.0)):
        model = TransformersLM(config={**config, key: other}, tokenizer="bytes", attention=None, weights=str(tmp_path))
        with pytest.raises(ValueError, match=f"does not fit llm.config: {key} is .*, expected {other}"):
            model.load_weights()
