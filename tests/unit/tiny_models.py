"""Tiny models with random weights in the format of transformers, for tests of what reads published ones."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFG"]
"""Labels of the tiny wav2vec 2.0."""
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Chat template of the tiny language model."""
SIZES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip


def ctc_config() -> Wav2Vec2Config:
    return Wav2Vec2Config(
        vocab_size=len(LETTERS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        conv_dim=[8] * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip


def write_ctc(folder: Path) -> str:
    """Write a tiny wav2vec 2.0 with a CTC head to a folder, and return its path."""
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    torch.manual_seed(2)
    model = Wav2Vec2ForCTC(ctc_config())
    torch.nn.init.normal_(model.lm_head.weight, std=3)
    model.save_pretrained(folder)
    return str(folder)


def write_llm(folder: Path, template: str | None = TEMPLATE) -> str:
    """Write a tiny causal language model with a byte-level tokenizer to a folder, and return its path."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|end|>", "additional_special_tokens": ["<|user|>", "<|assistant|>"]}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(Qwen2Config(vocab_size=len(wrapped), **SIZES))
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.4)
    model.save_pretrained(folder)
    return str(folder)
