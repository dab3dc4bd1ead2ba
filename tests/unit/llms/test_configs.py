"""Test configurations of backbones: tiny sizes, published sizes, and refused values."""

from __future__ import annotations

import json

import pytest
import torch

from omnikit import checkpoint
from omnikit.hparams import build_part, build_parts, choices, different_parts
from omnikit.llms.configs import make_config, published_numbers
from omnikit.llms.transformers_lm import TransformersLM


def config(size: str = "tiny", **numbers):
    return make_config(numbers, vocab_size=50, size=size, attention=None)


def test_tiny_keeps_the_kind_of_a_class():
    gemma = config(model_type="gemma3_text", sliding_window=512)
    assert gemma.layer_types == ["sliding_attention", "full_attention"]
    assert gemma.sliding_window < 20
    assert {kind: rope["rope_theta"] for kind, rope in gemma.rope_parameters.items()} == {
        "full_attention": 1e6, "sliding_attention": 1e4,
    }  # fmt: skip
    assert config(model_type="llama").rope_parameters["rope_type"] == "default"
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama = config(model_type="llama", rope_scaling={**scaled, "original_max_position_embeddings": 8192})
    assert llama.rope_parameters["rope_type"] == "llama3"
    assert config(model_type="phi", partial_rotary_factor=0.4).rope_parameters["partial_rotary_factor"] == 0.5
    assert config(model_type="mistral", sliding_window=None).sliding_window is None
    listed = config(model_type="smollm3", num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0])
    assert len(listed.no_rope_layers) == listed.num_hidden_layers


def test_long_rope_of_another_head_width_is_cut():
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    phi = config(
        model_type="phi3", hidden_size=3072, rope_scaling=factors, original_max_position_embeddings=16, head_dim=96
    )
    assert len(phi.rope_parameters["short_factor"]) == phi.hidden_size // phi.num_attention_heads // 2
    ids = torch.arange(20)[None]
    model = TransformersLM(config={"model_type": "phi3", "rope_scaling": factors}, tokenizer="bytes", size="tiny")
    assert model(model.embed(ids), ids).isfinite().all()


def test_tiny_takes_the_tokenizers_vocabulary():
    assert config(model_type="llama", vocab_size=32000).vocab_size == 50
    assert config("published", model_type="llama", vocab_size=32000).vocab_size == 32000


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({}, "model_type is missing"),
        ({"model_type": "qwen22"}, r"model_type 'qwen22': transformers \S+ has no such .*; did you mean qwen2\?"),
        ({"model_type": "wav2vec2"}, "model_type 'wav2vec2': transformers .* has no such causal language model"),
        ({"model_type": "llama", "hidden_size": 33}, "llm.config: .*hidden size .33. is not a multiple"),
    ],
)
def test_numbers_that_cannot_be(numbers, message):
    with pytest.raises(ValueError, match=message) as caught:
        config("published", **numbers)
    assert "\n" not in str(caught.value)


def test_other_options_that_cannot_be():
    with pytest.raises(ValueError, match=r"size 'small': no such size \(choices: published, tiny\)"):
        config("small", model_type="llama")
    with pytest.raises(ValueError, match=r"llm.attention sdpa: Gemma2"):
        build_part("llm", "gemma2_2b", size="tiny", tokenizer="bytes", attention="sdpa")


def test_a_folder_needs_its_config(tmp_path):
    with pytest.raises(ValueError, match=rf"llm.weights {tmp_path}: no config.json there"):
        build_part("llm", "any", weights=str(tmp_path))
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(ValueError, match=r"config.json: not JSON"):
        published_numbers(str(tmp_path), "llama")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config.json: names no model_type"):
        published_numbers(str(tmp_path), "llama")


def test_a_tokenizer_with_more_ids_than_the_model(tmp_path, tokenizer):
    numbers = {"model_type": "llama", "vocab_size": 5, "hidden_size": 16, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    with pytest.raises(ValueError, match=r"has \d+ ids, the language model only 5"):
        build_part("llm", "any", weights=str(tmp_path), tokenizer=tokenizer)


def test_a_checkpoint_of_ones_own_model_needs_its_folder_no_more(tmp_path):
    numbers = {"model_type": "qwen3", "vocab_size": 300, "hidden_size": 16, "num_attention_heads": 2, "head_dim": 8,
               "intermediate_size": 16, "num_hidden_layers": 1, "num_key_value_heads": 1}  # fmt: skip
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(numbers | {"architectures": ["Qwen3ForCausalLM"]}))
    small = {"encoder.width": 16, "encoder.heads": 2, "encoder.layers": 1, "adapter.hidden": 8}
    own = {"llm.weights": str(folder), "llm.tokenizer": "bytes"}
    model = build_parts({"llm": "any"}, {**small, **own})["model"]
    assert model.llm.config.model_type == "qwen3"
    assert model.llm.vocab_size == 300
    checkpoint.save(model, tmp_path / "saved")
    (folder / "config.json").unlink()
    assert checkpoint.load(tmp_path / "saved").llm.config.hidden_size == 16


def test_an_option_that_an_older_checkpoint_does_not_list_has_its_default():
    with torch.device("meta"):
        recipe = build_parts({"llm": "qwen2_0.5b"}, {"llm.tokenizer": "bytes"})["model"].recipe
    lines = recipe.splitlines(keepends=True)
    assert different_parts("".join(line for line in lines if "size: published" not in line), recipe) == {}
    assert different_parts(recipe.replace("size: published", "size: tiny"), recipe) == {
        "llm": ("size tiny", "size published")
    }


def test_the_issues_names_are_there():
    assert {"llama", "qwen2_0.5b", "vicuna_7b", "baichuan_7b", "baichuan2_7b", "any"} <= set(choices("llm"))
