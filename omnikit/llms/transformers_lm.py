"""A backbone that wraps any causal language model of transformers.

For inference, models of Llama's kind are computed without transformers, see `omnikit.llms.build_modes`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from omnikit.errors import one_line
from omnikit.hub import holds_transformers
from omnikit.interfaces import Backbone
from omnikit.kv_cache import cache_argument
from omnikit.linear_cross_entropy import Head
from omnikit.llms.build_modes import SKELETON_DTYPE, blocks_device, for_inference, skeletons
from omnikit.llms.configs import make_config, with_layers
from omnikit.llms.llama import KeyValues, LlamaConfig, Trunk
from omnikit.llms.lora import add_lora, train_lora_alone
from omnikit.llms.pretrained import read_transformers
from omnikit.llms.tokenizers import SentencePieceTokenizer, check_same_ids, open_tokenizer
from omnikit.llms.transformers_trunk import embedding_scale, finish_logits, finishes_logits, run, take_norm
from omnikit.part_sizes import PUBLISHED
from omnikit.public_weights import located
from omnikit.untrusted_models import build_network

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class _OnTrunk(nn.Module):
    """A module whose forward pass is that of its trunk, a stack of blocks of transformers or of `omnikit.llms.llama`.

    Subclasses set the trunk, its configuration, and `cache_argument`, the name of its argument for the KV cache.
    """

    trunk: nn.Module
    config: PretrainedConfig | LlamaConfig
    cache_argument: str

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: Any = None,
        sequences: Tensor | None = None,
    ) -> Tensor:
        options = {"cache": cache, "cache_argument": self.cache_argument, "sequences": sequences}
        return run(self.trunk, embeddings, positions, mask, **options)

    def new_cache(self) -> Any:
        if isinstance(self.config, LlamaConfig):
            return KeyValues(self.config.num_hidden_layers)
        from transformers import DynamicCache

        return DynamicCache(config=self.config)


class TransformersLM(_OnTrunk, Backbone):
    """A backbone built from the configuration of a causal language model of transformers.

    Args:
        config: `model_type` and numbers of the transformers configuration; without `vocab_size` the vocabulary is the
            tokenizer's.
        tokenizer: path of the tokenizer: a sentencepiece model file, a folder or hub id, or `bytes`.
        weights: trained weights: a safetensors file or a folder with one, see `Part`; or a folder or hub id in the
            format of transformers, Baichuan 7B among them (`model_type: llama` here).
        embedding_std: standard deviation of the random initial embedding table. The network's input is the mean over
            the streams, so what suits a text model (0.02) is lost in the first block's output; a backbone trained from
            scratch needs about 1.
        attention: attention implementation of transformers: `sdpa`, or `eager` (faster for training short sequences on
            a CPU); None = the best that the class has.
        size: `published` = the numbers of `config`; `tiny` = a few narrow layers of the same class, with the
            tokenizer's vocabulary.
        lora: options of `add_lora`; None = no LoRA. With LoRA nothing else of this part is ever trained. Weights of a
            model without LoRA can be loaded; weights with LoRA need the same options.

    Raises:
        ValueError: a `model_type` that transformers does not know, a missing tokenizer, or options that do not fit.
    """

    def __init__(
        self,
        *,
        config: dict[str, Any],
        tokenizer: str,
        weights: str | None = None,
        embedding_std: float = 0.02,
        attention: str | None = "sdpa",
        size: str = PUBLISHED,
        lora: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.tokenizer = open_tokenizer(tokenizer, config.get("vocab_size"))
        self.weights, self.lora = weights, lora
        self.config = make_config(
            config, vocab_size=self.tokenizer.vocab_size, size=size, attention=attention,
            light=bool(for_inference) and lora is None,
        )  # fmt: skip
        self.dim, self.vocab_size = self.config.hidden_size, self.config.vocab_size
        self.max_positions = getattr(self.config, "max_position_embeddings", None)
        self.trunk, self.lm_head = _trunk_and_head(self.config)
        self.cache_argument = cache_argument(self.trunk)
        embed = self.trunk.get_input_embeddings()
        if skeletons:
            embed.to(SKELETON_DTYPE).to_empty(device=torch.get_default_device())
        else:
            nn.init.normal_(embed.weight, std=embedding_std)
        self.embedding_std = embedding_std * embedding_scale(self.trunk)
        # taken out of the trunk, because the TTS adapter reads the hidden state before the norm
        self.norm = take_norm(self.trunk)
        if lora is not None:
            add_lora(self.trunk, lora)
            train_lora_alone(self)

    def load_weights(self) -> None:
        """Load weights from safetensors or from a folder in the format of transformers, see `Part.load_weights`.

        Raises:
            ValueError: the folder holds a sentencepiece tokenizer with other ids than the model's.
        """
        weights = located(self.weights)
        if weights is not None and isinstance(self.tokenizer, SentencePieceTokenizer):
            saved = Path(weights) / self.tokenizer.file_name
            if saved.is_file() and not saved.samefile(self.tokenizer.path):
                check_same_ids(self.tokenizer, str(saved), f"llm.weights {weights}")
        if weights is None or not holds_transformers(weights):
            return super().load_weights()
        read_transformers(weights, self.config, trunk=self.trunk, norm=self.norm, head=self.lm_head)

    def requires_grad_(self, requires_grad: bool = True) -> TransformersLM:
        """Freeze or unfreeze parameters like `torch.nn.Module.requires_grad_`; LoRA keeps its base model frozen."""
        super().requires_grad_(requires_grad)
        if self.lora is not None:
            train_lora_alone(self)
        return self

    def embed(self, ids: Tensor) -> Tensor:
        return self.trunk.get_input_embeddings()(ids)

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        return finish_logits(self.lm_head(hidden), self.config)

    def linear_head(self) -> Head | None:
        if type(self.lm_head) is not nn.Linear or type(self).head is not TransformersLM.head:
            return None  # a quantised head, or a subclass that computes logits in its own way
        finish = partial(finish_logits, config=self.config) if finishes_logits(self.config) else None
        return Head(self.lm_head.weight, self.lm_head.bias, finish)

    def blocks(self, n: int) -> TransformersBlocks:
        return TransformersBlocks(self.config, n)


class TransformersBlocks(_OnTrunk):
    """A stack of n blocks of a backbone's kind with its own final norm."""

    def __init__(self, config: PretrainedConfig | LlamaConfig, n: int):
        super().__init__()
        self.config = with_layers(config, n)
        # the input is the backbone's hidden state, so no embedding table is needed
        if isinstance(config, LlamaConfig):
            with blocks_device():
                self.trunk = Trunk(self.config, embeds=False)
        else:
            self.trunk = _build("AutoModel", self.config)
            self.trunk.set_input_embeddings(nn.Identity())
        self.cache_argument = cache_argument(self.trunk)


def _trunk_and_head(config: PretrainedConfig | LlamaConfig) -> tuple[nn.Module, nn.Module]:
    """Build the trunk and the head of a backbone; the head may be tied to the embedding table."""
    if not isinstance(config, LlamaConfig):
        model = _build("AutoModelForCausalLM", config)
        return model.get_decoder(), model.get_output_embeddings()
    with blocks_device():
        trunk, head = Trunk(config), nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    if config.tie_word_embeddings:
        head.weight = trunk.embed_tokens.weight
    return trunk, head


def _build(auto: str, config: PretrainedConfig) -> PreTrainedModel:
    """Build a network with random weights by an auto class of transformers, for example `AutoModel`.

    Raises:
        ValueError: an attention implementation that the class or the machine lacks.
    """
    import transformers

    try:
        with blocks_device():
            return build_network(getattr(transformers, auto), config)
    except (ValueError, ImportError) as error:
        raise ValueError(f"llm.attention {config._attn_implementation}: {one_line(error)}") from None
