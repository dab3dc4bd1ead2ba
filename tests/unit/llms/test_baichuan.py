"""Test Baichuan language models in their published folder format against a slow implementation of attention and head.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from omnikit.hparams import build_part
from omnikit.llms.tokenizers import SentencePieceTokenizer

WIDTH, HEADS, LAYERS, INNER, VOCAB, EPS = 16, 2, 2, 24, 40, 1e-6
CLASSES = {"BaiChuanForCausalLM": False, "BaichuanForCausalLM": True}
"""Mapping from the model class in `config.json` to whether each row of the head's weight is scaled to length 1."""


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"model.embed_tokens": (VOCAB, WIDTH), "lm_head": (VOCAB, WIDTH), "model.norm": (WIDTH,)}
    for layer in (f"model.layers.{i}" for i in range(LAYERS)):
        shapes |= {
            f"{layer}.self_attn.W_pack": (3 * WIDTH, WIDTH), f"{layer}.self_attn.o_proj": (WIDTH, WIDTH),
            f"{layer}.mlp.gate_proj": (INNER, WIDTH), f"{layer}.mlp.up_proj": (INNER, WIDTH),
            f"{layer}.mlp.down_proj": (WIDTH, INNER), f"{layer}.input_layernorm": (WIDTH,),
            f"{layer}.post_attention_layernorm": (WIDTH,),
        }  # fmt: skip
    state = {f"{name}.weight": 0.3 * torch.randn(shape) + (len(shape) == 1) for name, shape in shapes.items()}
    turning = torch.ones(WIDTH // HEADS // 2)
    return state | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": turning.clone() for i in range(LAYERS)}


def write(folder, tokenizer: str, architecture: str, form: str, **changes) -> dict[str, torch.Tensor]:
    config = {
        "architectures": [architecture], "model_type": "baichuan", "vocab_size": VOCAB, "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "hidden_act": "silu",
        "max_position_embeddings": 64, "rms_norm_eps": EPS, "tie_word_embeddings": False, "pad_token_id": 0,
        "auto_map": {"AutoModelForCausalLM": f"modeling_baichuan.{architecture}"}, "torch_dtype": "float32", **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    own = {"auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
    state = weights()
    if form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:  # two files, as large models are stored
        names = sorted(state)
        for number, half in enumerate((names[::2], names[1::2]), start=1):
            save_file({name: state[name] for name in half}, folder / f"model-0000{number}-of-00002.safetensors")
    return state


def turned(x: torch.Tensor, place: int) -> torch.Tensor:
    """Apply rotary position embedding to one head's vector [W]; dimensions i and i + W / 2 are rotated as a pair."""
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = torch.tensor(place * 10000 ** (-2 * i / len(x)))
        out[i] = x[i] * angle.cos() - x[i + half] * angle.sin()
        out[i + half] = x[i + half] * angle.cos() + x[i] * angle.sin()
    return out


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * (x.pow(2).mean(dim=-1, keepdim=True) + EPS).rsqrt() * weight


def attend(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Compute causal self-attention for normed states [L, D] -> [L, D], one head and one position after the other."""
    q, k, v = (x @ packed.T).split(WIDTH, dim=-1)
    width, out = WIDTH // HEADS, torch.zeros_like(x)
    for part in (slice(h * width, (h + 1) * width) for h in range(HEADS)):
        keys = [turned(k[i, part], i) for i in range(len(x))]
        for i in range(len(x)):
            scores = torch.stack([turned(q[i, part], i) @ keys[j] / width**0.5 for j in range(i + 1)])
            out[i, part] = scores.softmax(dim=0) @ v[: i + 1, part]
    return out


def twin(state: dict[str, torch.Tensor], ids: torch.Tensor, normed_head: bool) -> torch.Tensor:
    """Compute a Baichuan model's logits [L, V] for ids [L] by a slow, simple implementation."""
    w = {name.removesuffix(".weight").removeprefix("model."): tensor for name, tensor in state.items()}
    x = w["embed_tokens"][ids]
    for layer in (f"layers.{i}" for i in range(LAYERS)):
        attended = attend(norm(x, w[f"{layer}.input_layernorm"]), w[f"{layer}.self_attn.W_pack"])
        x = x + attended @ w[f"{layer}.self_attn.o_proj"].T
        inner = norm(x, w[f"{layer}.post_attention_layernorm"])
        gated = F.silu(inner @ w[f"{layer}.mlp.gate_proj"].T) * (inner @ w[f"{layer}.mlp.up_proj"].T)
        x = x + gated @ w[f"{layer}.mlp.down_proj"].T
    head = w["lm_head"] / w["lm_head"].norm(dim=1, keepdim=True) if normed_head else w["lm_head"]
    return norm(x, w["norm"]) @ head.T


@torch.inference_mode()
@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("architecture", CLASSES)
def test_logits_are_those_of_the_twin(tmp_path, tokenizer, architecture, form):
    state = write(tmp_path, tokenizer, architecture, form)
    model = build_part("llm", "any", weights=str(tmp_path)).eval()
    model.load_weights()
    ids = torch.randint(0, VOCAB, (9,))
    hidden = model(model.embed(ids[None]), torch.arange(9)[None])
    expected = twin(state, ids, normed_head=CLASSES[architecture])
    torch.testing.assert_close(model.head(model.final_norm(hidden))[0], expected, atol=1e-5, rtol=1e-5)


def test_its_tokenizer_is_read_without_its_code(tmp_path, tokenizer):
    write(tmp_path, tokenizer, "BaiChuanForCausalLM", "bin")
    model = build_part("llm", "any", weights=str(tmp_path))
    assert isinstance(model.tokenizer, SentencePieceTokenizer)
    assert model.tokenizer.decode([*model.tokenizer.encode("one two"), VOCAB - 1]) == "one two"


def test_the_part_file_names_the_same_network(tmp_path, tokenizer):
    write(tmp_path, tokenizer, "BaichuanForCausalLM", "bin")
    sizes = {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    }  # fmt: skip
    options = {f"config.{name}": value for name, value in sizes.items()}
    model = build_part("llm", "baichuan2_7b", weights=str(tmp_path), tokenizer=str(tmp_path), **options)
    model.load_weights()
    torch.testing.assert_close(model.lm_head.weight.norm(dim=1), torch.ones(VOCAB))


def test_what_cannot_be_read(tmp_path, tokenizer):
    write(tmp_path, tokenizer, "BaichuanForCausalLM", "bin", hidden_size=5120)
    with pytest.raises(ValueError, match="Baichuan 13B has no rotary positions; the 7B models can be read"):
        build_part("llm", "any", weights=str(tmp_path))
    write(tmp_path, tokenizer, "BaichuanForCausalLM", "bin", num_hidden_layers=3)
    model = build_part("llm", "any", weights=str(tmp_path))
    with pytest.raises(ValueError, match=r"weights .*Missing key.*model.layers.2.self_attn.q_proj.weight"):
        model.load_weights()
    (tmp_path / "pytorch_model.bin").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"weights .*pytorch_model.bin: "):
        model.load_weights()
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"neither \*.safetensors nor pytorch_model\*.bin"):
        model.load_weights()
