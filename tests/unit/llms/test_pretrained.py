"""Test loading language models and tokenizers in the format of transformers."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from omnikit.hparams import build_part
from omnikit.llms.tokenizers import ByteTokenizer, TransformersTokenizer, open_tokenizer
from omnikit.llms.transformers_lm import TransformersLM

SIZES = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
KINDS = {"qwen2": Qwen2Config, "llama": LlamaConfig}


def write(folder, kind: str = "qwen2", tied: bool = False, **options):
    """Save a language model with random weights in the format of transformers, and return it."""
    torch.manual_seed(0)
    config = KINDS[kind](**SIZES | {"tie_word_embeddings": tied} | options)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def ours(folder, kind: str = "qwen2", tied: bool = False, **changes) -> TransformersLM:
    config = {"model_type": kind, "tie_word_embeddings": tied, **SIZES, **changes}
    return TransformersLM(config=config, tokenizer="bytes", weights=str(folder)).eval()


def logits(model: TransformersLM, ids: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(ids.shape[1])[None]
    return model.head(model.final_norm(model(model.embed(ids), positions)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tied_there", "tied_here"), [(False, False), (True, False), (True, True)])
def test_weights_give_transformers_own_logits(tmp_path, kind, tied_there, tied_here):
    theirs, model = write(tmp_path, kind, tied_there), ours(tmp_path, kind, tied_here)
    model.load_weights()
    ids = torch.randint(0, 300, (2, 9))
    with torch.inference_mode():
        torch.testing.assert_close(logits(model, ids), theirs(ids).logits, atol=1e-6, rtol=1e-5)
    tied = model.lm_head.weight is model.trunk.get_input_embeddings().weight
    assert tied == tied_here


def test_the_part_file_reads_a_folder(tmp_path):
    theirs = write(tmp_path, tied=True, rope_theta=1000000.0)
    model = build_part("llm", "qwen2_0.5b", **{
        **{f"config.{key}": value for key, value in SIZES.items()}, "config.head_dim": 8,
        "tokenizer": "bytes", "weights": str(tmp_path),
    }).eval()  # fmt: skip
    model.load_weights()
    ids = torch.randint(0, 300, (1, 5))
    with torch.inference_mode():
        torch.testing.assert_close(logits(model, ids), theirs(ids).logits, atol=1e-6, rtol=1e-5)


def test_another_shape_is_refused_with_both_numbers(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match=r"config.json does not fit llm.config: hidden_size is 16, expected 8"):
        ours(tmp_path, hidden_size=8).load_weights()
    with pytest.raises(ValueError, match="model_type is qwen2, expected llama"):
        ours(tmp_path, kind="llama").load_weights()
    with pytest.raises(ValueError, match="tie_word_embeddings is False, expected True"):
        ours(tmp_path, tied=True).load_weights()
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(ValueError, match=f"weights {tmp_path}"):
        ours(tmp_path).load_weights()


def test_building_fetches_nothing_and_reading_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with torch.device("meta"):
        model = build_part("llm", "qwen2_0.5b")
    assert model.tokenizer.vocab_size == 151936
    with pytest.raises(ValueError, match=r"Qwen/Qwen2-0.5B: no such folder here, and not from the hub"):
        model.tokenizer.encode("a")
    with pytest.raises(ValueError, match=r"Qwen/Qwen2-0.5B: no such folder here, and not from the hub"):
        model.load_weights()


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a byte-level tokenizer without merges: 256 ids and one special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    wrapped.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_a_folder_of_a_tokenizer(folder, tmp_path):
    tokenizer = open_tokenizer(str(folder), 300)
    assert isinstance(tokenizer, TransformersTokenizer)
    assert tokenizer.vocab_size == 257
    text = " Grüße, 世界 "
    assert tokenizer.decode([*tokenizer.encode(text), 256, 299]) == text
    assert tokenizer.encode_many([text, "", text * 3]) == [tokenizer.encode(each) for each in (text, "", text * 3)]
    tokenizer.save(str(tmp_path / "copy"))
    assert open_tokenizer(str(tmp_path / "copy")).encode(text) == tokenizer.encode(text)


def test_tokenizers_that_do_not_fit(folder, tmp_path):
    with pytest.raises(ValueError, match="tokenizer has 257 ids, the language model only 200"):
        open_tokenizer(str(folder), 200)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no tokenizer that transformers can read"):
        open_tokenizer(str(folder))
    with pytest.raises(ValueError, match="holds neither"):
        open_tokenizer(str(tmp_path))
    with pytest.raises(ValueError, match=r"no such file: nowhere/a.model"):
        open_tokenizer("nowhere/a.model")
    with pytest.raises(ValueError, match=r"llm.config.vocab_size: needed"):
        open_tokenizer("nowhere/a")


def test_bytes():
    tokenizer = open_tokenizer("bytes")
    assert isinstance(tokenizer, ByteTokenizer)
    assert tokenizer.encode("aß") == [97, 195, 159]
    assert tokenizer.decode([97, 195, 159, 300]) == "aß"
    with pytest.raises(ValueError, match="'ß' has bytes beyond 126"):
        open_tokenizer("bytes", 127).encode("aß")
