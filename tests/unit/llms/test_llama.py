"""Test that backbones of Llama's architecture, computed without transformers, equal those of transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from omnikit import checkpoint
from omnikit.hparams import build_part
from omnikit.llms.build_modes import for_inference
from omnikit.llms.llama import JoinedLinear, Trunk, attention_bias, blocks_of, rotary_tables
from omnikit.llms.llama_config import KINDS, LlamaConfig, rotary_rates, rotary_scaling, supports
from omnikit.llms.transformers_lm import TransformersLM
from tests.unit.toy import tokenizer_file, toy_model

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
CASES = {
    "qwen2": {},
    "qwen2, a head of its own": {"tie_word_embeddings": True},
    "qwen2, some blocks in a window": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8},
    "qwen3": {},
    "qwen3, biases": {"attention_bias": True},
    "llama": {},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "llama, llama 3": {"rope_scaling": LLAMA3},
    "llama, yarn": {"rope_parameters": YARN},
    "llama, linear": {"rope_parameters": {"rope_type": "linear", "factor": 3.0}, "rope_theta": 5000.0},
    "mistral": {"sliding_window": 8},
    "mistral, no window": {"sliding_window": None},
}
PARTS = ("qwen2_0.5b", "qwen2.5_0.5b", "qwen3_0.6b", "smollm2_135m", "vicuna_7b", "llama", "llama3_8b", "mistral_7b",
         "baichuan2_7b", "mini")  # fmt: skip
LENGTH = 20
DIM = 32


def numbers(case: str) -> dict:
    """Return the configuration of a small backbone whose query heads share key heads, with wide heads where possible.
    """
    kind = case.split(",")[0]
    wide = {"head_dim": 16} if kind != "qwen2" else {}
    return {
        "model_type": kind, "hidden_size": DIM, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 90,
        **wide, **CASES[case],
    }  # fmt: skip


def both(case: str) -> tuple[TransformersLM, TransformersLM]:
    """Return two backbones with the same random weights, one computed by transformers and one by omnikit."""
    torch.manual_seed(0)
    theirs = TransformersLM(config=numbers(case), tokenizer="bytes", attention="eager").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.5 if parameter.dim() == 1 else 0.0, 0.2)
    with for_inference():
        ours = TransformersLM(config=numbers(case), tokenizer="bytes").eval()
    assert isinstance(ours.trunk, Trunk)
    assert not isinstance(theirs.trunk, Trunk)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def places(begin: int, end: int, rows: int = 3) -> Tensor:
    return torch.arange(begin, end)[None].expand(rows, -1)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_whole_sequences(case):
    theirs, ours = both(case)
    inputs = torch.randn(3, LENGTH, DIM)
    expected = theirs(inputs, places(0, LENGTH))
    assert expected.std() > 0.1
    close(ours(inputs, places(0, LENGTH)), expected)
    close(ours.head(ours.final_norm(expected)), theirs.head(theirs.final_norm(expected)))
    ids = torch.arange(90)
    assert torch.equal(ours.embed(ids), theirs.embed(ids))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_padded_sequences(case, side):
    theirs, ours = both(case)
    inputs, lengths = torch.randn(3, LENGTH, DIM), torch.tensor([LENGTH, 13, 5])
    mask = (torch.arange(LENGTH)[None] < lengths[:, None]).long()
    mask = mask.flip(1) if side == "left" else mask
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    found, expected = (model(inputs, positions, mask) for model in (ours, theirs))
    assert found.isfinite().all()
    close(found[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_through_a_cache_whose_rows_are_selected_and_which_is_cropped(case):
    theirs, ours = both(case)
    inputs = torch.randn(3, LENGTH, DIM)
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, :4] = 0
    caches = [ours.new_cache(), theirs.new_cache()]
    for begin, end in ((0, 9), (9, 12), (12, 13)):
        steps = [
            model(inputs[:, begin:end], places(begin, end), mask[:, :end], cache)
            for model, cache in zip((ours, theirs), caches, strict=True)
        ]
        inside = mask[:, begin:end].bool()
        close(steps[0][inside], steps[1][inside])
    rows = torch.tensor([2, 0, 2, 1])
    for cache in caches:
        cache.reorder_cache(rows)
    inputs, mask = inputs[rows], mask[rows]
    steps = [
        model(inputs[:, 13:14], places(13, 14, 4), mask[:, :14], cache)
        for model, cache in zip((ours, theirs), caches, strict=True)
    ]
    close(*steps)
    assert caches[0].get_seq_length() == 14
    assert caches[0].layers[-1].keys.shape == (4, 2, 14, ours.config.head_dim)
    caches[0].crop(13)
    close(ours(inputs[:, 13:14], places(13, 14, 4), mask[:, :14], caches[0]), steps[0])


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_blocks_of_its_kind(case):
    """Check that the blocks of a TTS adapter equal those of transformers, also with more blocks than the backbone."""
    theirs, ours = (model.blocks(3).eval() for model in both(case))
    ours.load_state_dict(theirs.state_dict())
    inputs, caches = torch.randn(3, LENGTH, DIM), [ours.new_cache(), theirs.new_cache()]
    for begin, end in ((0, 12), (12, LENGTH)):
        close(*(
            blocks(inputs[:, begin:end], places(begin, end), None, cache)
            for blocks, cache in zip((ours, theirs), caches, strict=True)
        ))  # fmt: skip


@pytest.mark.parametrize("case", ["qwen2", "qwen3", "mistral"])
@torch.inference_mode()
def test_bfloat16(case):
    theirs, ours = both(case)
    inputs = torch.randn(3, LENGTH, DIM)
    exact = theirs(inputs, places(0, LENGTH))
    for model in (ours, theirs):
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    errors = [(model(inputs.bfloat16(), places(0, LENGTH)).float() - exact).norm() for model in (ours, theirs)]
    assert 0 < errors[0] < 1.2 * errors[1]
    assert errors[1] < 0.02 * exact.norm()


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_the_functions_run_over_transformers_modules(case):
    theirs, _ = both(case)
    inputs = torch.randn(3, LENGTH, DIM)
    expected, config = theirs(inputs, places(0, LENGTH)), LlamaConfig.of(theirs.config)
    x = inputs.clone()
    turn = rotary_tables(places(0, LENGTH), theirs.trunk.rotary_emb, config, x.dtype)
    bias = {window: attention_bias(places(0, LENGTH, 1), LENGTH, window, x.dtype) for window in config.windows}
    for block in blocks_of(theirs.trunk, joined=True):
        x = block(x, turn, bias, lambda _, new: new.transpose(1, 2).chunk(2, dim=1))
    close(x, expected)


def test_joint_layers_share_their_memory():
    """Check that linear layers joined into one compute the same, also if joined twice or with changed weights."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, n) for n in (6, 2, 4)]
    x, state = torch.randn(3, 8), [{**layer.state_dict()} for layer in layers]
    expected = torch.cat([layer(x) for layer in layers], dim=-1)
    joints = [JoinedLinear(layers, joined=True) for _ in range(2)]
    assert len({joint.weight.data_ptr() for joint in joints} | {layers[0].weight.data_ptr()}) == 1
    assert {layer.weight.untyped_storage().data_ptr() for layer in layers} == {joints[0].weight.data_ptr()}
    torch.testing.assert_close(joints[0](x), expected)
    for layer, before in zip(layers, state, strict=True):
        assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
        layer.weight.data.zero_()
    assert not joints[1].weight.any()
    assert layers[1].weight.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_missing_numbers_are_those_of_the_class(kind):
    assert LlamaConfig.of({"model_type": kind}) == LlamaConfig.of(AutoConfig.for_model(kind))
    given = {"model_type": kind, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    assert LlamaConfig.of(given) == LlamaConfig.of(AutoConfig.for_model(**given))


@pytest.mark.parametrize("name", PARTS)
def test_part_files_mean_the_same_numbers(name):
    with torch.device("meta"):
        theirs = build_part("llm", name, tokenizer="bytes")
        with for_inference():
            ours = build_part("llm", name, tokenizer="bytes")
    assert ours.config == LlamaConfig.of(theirs.config)
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    for module in (ours, theirs):
        tied = module.lm_head.weight is module.trunk.get_input_embeddings().weight
        assert tied == theirs.config.tie_word_embeddings


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "linear", "factor": 4.0},
        LLAMA3,
        {**LLAMA3, "original_max_position_embeddings": 8192, "factor": 8.0},
        {**YARN, "original_max_position_embeddings": 32768},
        {**YARN, "attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9, "rope_theta": 1e6},
    ],
)
def test_rotary_rates_are_transformers_to_the_last_bit(rope):
    given = {"model_type": "llama", "head_dim": 128, "max_position_embeddings": 131072}
    theirs = AutoConfig.for_model(**given, rope_parameters=dict(rope))
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotary = LlamaRotaryEmbedding(theirs)
    for config in (theirs, {**given, "rope_parameters": rope}):
        numbers = LlamaConfig.of(config)
        rates, scaling = rotary_rates(numbers), rotary_scaling(numbers)
        assert torch.equal(rates, rotary.inv_freq)
        assert scaling == rotary.attention_scaling


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"model_type": "phi"}, "it is none of qwen2, qwen3, llama, mistral"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"model_type": "llama", "hidden_size": "64"}, "hidden_size '64'"),
        ({"model_type": "llama", "sliding_window": 8}, "sliding_window 8"),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 32}, "layer_types ["),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "qwen2", "num_attention_heads": 3}, "num_attention_heads 3"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic rotary"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "high_freq_factor None"),
        ({"model_type": "llama", "rope_parameters": {"partial_rotary_factor": 0.5}}, "a part of each head"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"model_type": "llama", "logit_scale": 2.0}, "logit_scale 2.0"),
    ],
)
def test_what_is_not_computed_here_says_why(given, reason):
    found = supports(given)
    assert found is not None
    assert reason in found
    assert "\n" not in found


def test_the_shapes_of_others_are_transformers(monkeypatch):
    """Check that unsupported backbones, and those with LoRA, are computed by transformers even for inference."""
    with for_inference():
        phi = build_part("llm", "phi2", size="tiny", tokenizer="bytes")
        lora = build_part("llm", "mini", size="tiny", tokenizer="bytes", lora={"rank": 2})
    assert not isinstance(phi.trunk, Trunk)
    assert not isinstance(lora.trunk, Trunk)


def test_a_checkpoint_is_loaded_into_it(tmp_path):
    import omnikit

    torch.manual_seed(0)
    parts = {"encoder": "none", "adapter": "linear", "llm": "mini", "codec": "none", "tts_blocks": 1}
    model = omnikit.build(size="tiny", **parts).eval()
    checkpoint.save(model, tmp_path, torch.float32)
    loaded = checkpoint.load(tmp_path)
    assert isinstance(loaded.llm.trunk, Trunk)
    assert isinstance(loaded.tts_adapter.trunk, Trunk)
    steps = torch.randint(0, 9, (2, model.layout.num_streams, LENGTH))
    with torch.inference_mode():
        ours, theirs = loaded(steps), model(steps)
        close(loaded.text_logits(ours.text), model.text_logits(theirs.text))
        close(ours.audio, theirs.audio)


def test_it_is_built_without_transformers():
    """Check that building and running a backbone imports neither transformers nor torch's compiler."""
    code = f"""
import sys, torch
from omnikit.llms.build_modes import for_inference
from omnikit.llms.transformers_lm import TransformersLM
with for_inference():
    model = TransformersLM(config={numbers("qwen3")!r}, tokenizer={tokenizer_file()!r})
    blocks = model.blocks(1)
ids = torch.tensor([model.tokenizer.encode("the cat")])
positions = torch.arange(ids.shape[1])[None]
hidden = blocks(model(model.embed(ids), positions, None, model.new_cache()), positions)
assert hidden.isfinite().all()
heavy = sorted(name for name in sys.modules if name.split(".")[0] == "transformers" or name == "torch._dynamo")
assert not heavy, heavy
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=root)
    assert done.returncode == 0, done.stderr


def test_toy_models_train_with_transformers():
    assert not isinstance(toy_model().llm.trunk, Trunk)
