"""Any transformers causal language model as a backbone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache, PretrainedConfig

from omnikit.interfaces import Backbone
from omnikit.llms.published import holds_transformers, read_transformers
from omnikit.llms.tokenizers import open_tokenizer


class TransformersLM(Backbone):
    """A causal language model built from its configuration.

    Args:
        config: `model_type` and the numbers of its transformers configuration; the vocabulary is the tokenizer's where
            `vocab_size` is not given.
        tokenizer: a sentencepiece model file, a folder or hub id of a transformers tokenizer, or `bytes`.
        weights: a safetensors file or a folder with one, see `Part`; or a folder or hub id as transformers writes it.
        embedding_std: of the random initial embeddings. The network's input is the mean over streams, so what suits a
            text model (0.02) drowns in the first block's output; a backbone trained from nothing wants about 1.
        attention: transformers' attention implementation: `sdpa` or `eager` (faster for training short sequences on
            a CPU).

    Raises:
        ValueError: a `model_type` that transformers does not know, or a missing tokenizer.
    """

    def __init__(
        self,
        *,
        config: dict[str, Any],
        tokenizer: str,
        weights: str | None = None,
        embedding_std: float = 0.02,
        attention: str = "sdpa",
    ):
        super().__init__()
        self.tokenizer = open_tokenizer(tokenizer, config.get("vocab_size"))
        self.weights = weights
        self.config = _read_config(config, self.tokenizer.vocab_size, attention)
        model = AutoModelForCausalLM.from_config(self.config)
        self.dim, self.vocab_size = self.config.hidden_size, self.config.vocab_size
        self.trunk, self.lm_head = model.get_decoder(), model.get_output_embeddings()
        self.embedding_std = embedding_std
        nn.init.normal_(self.trunk.get_input_embeddings().weight, std=embedding_std)
        # the trunk would norm its output, but the TTS adapter reads the hidden state before the norm
        self.norm, self.trunk.norm = self.trunk.norm, nn.Identity()

    def load_weights(self) -> None:
        """From safetensors as every part, or from what transformers' `save_pretrained` writes."""
        if self.weights is None or not holds_transformers(self.weights):
            return super().load_weights()
        read_transformers(self.weights, self.config, trunk=self.trunk, norm=self.norm, head=self.lm_head)

    def embed(self, ids: Tensor) -> Tensor:
        return self.trunk.get_input_embeddings()(ids)

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None = None, cache: Any = None) -> Tensor:
        return _run(self.trunk, embeddings, positions, mask, cache)

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)

    def new_cache(self) -> DynamicCache:
        return DynamicCache()

    def blocks(self, n: int) -> TransformersBlocks:
        return TransformersBlocks(self.config, n)


class TransformersBlocks(nn.Module):
    """A stack of n blocks of a backbone's kind with its own final norm."""

    def __init__(self, config: PretrainedConfig, n: int):
        super().__init__()
        config = copy.deepcopy(config)
        if getattr(config, "layer_types", None):
            config.layer_types = (config.layer_types * n)[:n]
        config.num_hidden_layers = n
        self.trunk = AutoModel.from_config(config)
        # its input is the backbone's hidden state
        self.trunk.set_input_embeddings(nn.Identity())

    def forward(self, hidden: Tensor, positions: Tensor, mask: Tensor | None = None, cache: Any = None) -> Tensor:
        return _run(self.trunk, hidden, positions, mask, cache)

    def new_cache(self) -> DynamicCache:
        return DynamicCache()


def _run(trunk: nn.Module, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
    out = trunk(
        inputs_embeds=embeddings,
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return out.last_hidden_state


def _read_config(numbers: dict[str, Any], vocab_size: int, attention: str) -> PretrainedConfig:
    numbers = {"vocab_size": vocab_size, **numbers}
    kind = numbers.pop("model_type", None)
    if kind is None:
        raise ValueError("llm.config: model_type is missing (qwen2, llama, ..)")
    try:
        config = AutoConfig.for_model(kind, **numbers)
    except ValueError as error:
        raise ValueError(f"llm.config.model_type: transformers does not know {kind!r}") from error
    config._attn_implementation = attention
    config.dtype = torch.float32
    return config
