"""Names, shapes and order of the published Mini-Omni's weights, which follow litgpt's GPT.

Letters: D width, V ids, H heads, G groups of heads that share keys and values, E width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from torch import Tensor

from omnikit.tokens import RESERVED

_ONLY = {
    "rotary_percentage": 1.0, "parallel_residual": False, "bias": False, "lm_head_bias": False,
    "scale_embeddings": False, "shared_attention_norm": False, "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP", "rope_condense_ratio": 1,
}  # fmt: skip
"""Values of `model_config.yaml` in the released checkpoint; the published code supports others, too."""
ADAPTERS = {"llamamlp": "gated_mlp", "mlp": "linear"}
"""Mapping from the published code's names of adapters to omnikit's."""
_MLP = {"fc_1": "gate_proj", "fc_2": "up_proj", "proj": "down_proj"}
_NORMS = {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm"}


@dataclass(frozen=True)
class Sizes:
    """Keys of `model_config.yaml` that determine the network; defaults are those of the published code."""

    n_layer: int
    n_embd: int
    n_head: int
    intermediate_size: int
    padded_vocab_size: int
    norm_eps: float
    rope_base: int
    block_size: int
    n_query_groups: int
    head_size: int
    add_qkv_bias: bool = False
    tie_word_embeddings: bool = False
    text_vocab_size: int = 152000
    cat_audio_vocab_size: int = 29120
    audio_vocab_size: int = 4160
    whisper_adapter_dim: int = 768
    post_adapter: bool = False
    post_adapter_layers: int = 6
    asr_adapter: str = "llamamlp"

    @property
    def text_vocab(self) -> int:
        """Number of ids of the backbone's own vocabulary."""
        return self.text_vocab_size - RESERVED

    @property
    def codebook_size(self) -> int:
        return self.audio_vocab_size - RESERVED

    @property
    def num_codebooks(self) -> int:
        return self.cat_audio_vocab_size // self.audio_vocab_size

    @property
    def tts_blocks(self) -> int:
        return self.post_adapter_layers if self.post_adapter else 0


def read_sizes(config: Mapping[str, Any], source: str = "model_config") -> Sizes:
    """Return the sizes of the network that a published `model_config.yaml` describes.

    Raises:
        ValueError: a key is missing, or has a value that the released architecture does not have.
    """
    for key, value in _ONLY.items():
        if config.get(key, value) != value:
            raise ValueError(f"{source}: {key} is {config[key]}; only {value} is supported")
    if config.get("asr_adapter", "llamamlp") not in ADAPTERS:
        raise ValueError(f"{source}: asr_adapter is {config['asr_adapter']} (choices: {', '.join(ADAPTERS)})")
    fields = Sizes.__dataclass_fields__
    given = {key: config[key] for key in fields if config.get(key) is not None}
    if {"n_head", "n_embd"} <= set(given):
        given = {"n_query_groups": given["n_head"], "head_size": given["n_embd"] // given["n_head"], **given}
    missing = [key for key, field in fields.items() if key not in given and field.default is MISSING]
    if missing:
        raise ValueError(f"{source}: {', '.join(missing)} is missing")
    sizes = Sizes(**given)
    if sizes.padded_vocab_size < sizes.text_vocab_size + sizes.cat_audio_vocab_size:
        raise ValueError(
            f"{source}: padded_vocab_size {sizes.padded_vocab_size} is less than text_vocab_size"
            f" {sizes.text_vocab_size} and cat_audio_vocab_size {sizes.cat_audio_vocab_size} together"
        )
    return sizes


def published_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of the published network by name."""
    d, vocab, inner = sizes.n_embd, sizes.padded_vocab_size, sizes.intermediate_size
    features = sizes.whisper_adapter_dim
    shapes = {"lm_head.weight": (vocab, d), "transformer.wte.weight": (vocab, d), "transformer.ln_f.weight": (d,)}
    if ADAPTERS[sizes.asr_adapter] == "linear":
        shapes |= {"whisper_adapter.weight": (d, features), "whisper_adapter.bias": (d,)}
    else:
        shapes |= {f"whisper_adapter.{name}.weight": (inner, features) for name in ("fc_1", "fc_2")}
        shapes |= {"whisper_adapter.proj.weight": (d, inner)}
    for n in range(sizes.n_layer):
        shapes |= _block_shapes(f"transformer.h.{n}", sizes)
    for n in range(sizes.tts_blocks):
        shapes |= _block_shapes(f"transformer.post_adapter.{n}", sizes)
    if sizes.tts_blocks:
        shapes["transformer.post_adapter_audio_ln.weight"] = (d,)
        shapes["transformer.post_adapter_audio_lm_head.weight"] = (sizes.cat_audio_vocab_size, d)
    return shapes


def _block_shapes(block: str, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    d, inner, queries = sizes.n_embd, sizes.intermediate_size, sizes.n_head * sizes.head_size
    joint = queries + 2 * sizes.n_query_groups * sizes.head_size
    shapes = {
        "norm_1.weight": (d,), "norm_2.weight": (d,), "attn.attn.weight": (joint, d), "attn.proj.weight": (d, queries),
        "mlp.fc_1.weight": (inner, d), "mlp.fc_2.weight": (inner, d), "mlp.proj.weight": (d, inner),
    }  # fmt: skip
    if sizes.add_qkv_bias:
        shapes["attn.attn.bias"] = (joint,)
    return {f"{block}.{name}": shape for name, shape in shapes.items()}


def our_names(state: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """Return published weights under the names and in the order that `OmniLM` has."""
    ours = {"llm.norm.weight": state["transformer.ln_f.weight"], **_adapter(state)}
    ours |= _tables("embed", "llm.trunk.embed_tokens.weight", state["transformer.wte.weight"], sizes)
    ours |= _tables("head", "llm.lm_head.weight", state["lm_head.weight"], sizes)
    for n in range(sizes.n_layer):
        ours |= _block(state, f"transformer.h.{n}", f"llm.trunk.layers.{n}", sizes)
    for n in range(sizes.tts_blocks):
        ours |= _block(state, f"transformer.post_adapter.{n}", f"tts_adapter.trunk.layers.{n}", sizes)
    if sizes.tts_blocks:
        ours["tts_adapter.trunk.norm.weight"] = state["transformer.post_adapter_audio_ln.weight"]
        ours["new_audio_embeddings.head.weight"] = state["transformer.post_adapter_audio_lm_head.weight"]
    return ours


def _tables(side: str, known: str, table: Tensor, sizes: Sizes) -> dict[str, Tensor]:
    """Split one shared table [V, D] into those of the backbone's own ids, the text specials and all audio streams."""
    text, audio = sizes.text_vocab_size, sizes.cat_audio_vocab_size
    return {
        known: table[: sizes.text_vocab],
        f"new_text_embeddings.{side}.weight": table[sizes.text_vocab : text],
        f"new_audio_embeddings.{side}.weight": table[text : text + audio],
    }


def _adapter(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the adapter's weights under omnikit's names; a published linear adapter is the layer `proj` here."""
    names = [name for name in state if name.startswith("whisper_adapter.")]
    inner = {name: name.removeprefix("whisper_adapter.") for name in names}
    return {f"adapter.{n if '.' in n else 'proj.' + n}": state[name] for name, n in inner.items()}


def _block(state: Mapping[str, Tensor], block: str, ours: str, sizes: Sizes) -> dict[str, Tensor]:
    found = {f"{ours}.mlp.{new}.weight": state[f"{block}.mlp.{old}.weight"] for old, new in _MLP.items()}
    found |= {f"{ours}.{new}.weight": state[f"{block}.{old}.weight"] for old, new in _NORMS.items()}
    found[f"{ours}.self_attn.o_proj.weight"] = state[f"{block}.attn.proj.weight"]
    for kind in ("weight", "bias") if sizes.add_qkv_bias else ("weight",):
        split = _queries_keys_values(state[f"{block}.attn.attn.{kind}"], sizes)
        found |= {f"{ours}.self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", split, strict=True)}
    return found


def _queries_keys_values(joint: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Split a joint projection [(H + 2 G) E, ..] into queries [H E, ..], keys [G E, ..] and values [G E, ..].

    The joint one holds for each group its H / G query heads, a key head and a value head.
    """
    groups = joint.unflatten(0, (sizes.n_query_groups, -1, sizes.head_size))
    queries, keys, values = groups.split((sizes.n_head // sizes.n_query_groups, 1, 1), dim=1)
    return queries.flatten(0, 2), keys.flatten(0, 2), values.flatten(0, 2)
