"""Test that tokenizers like those of Qwen, Llama and Gemma encode text as text, even if it spells special tokens."""

# ruff: noqa: RUF001

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from omnikit.generate.detokenize import TextReader
from omnikit.hparams import packaged
from omnikit.llms.tokenizers import (
    ByteTokenizer,
    SentencePieceTokenizer,
    TransformersTokenizer,
    check_same_ids,
    open_tokenizer,
)
from omnikit.tokens import TokenLayout

SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>", "[INST]", "<start_of_turn>", "<bos>"]
ADDED = ["<laugh>", "   "]
"""Tokens added to the test tokenizers that are ordinary vocabulary rather than special tokens."""
SCRIPTS = [
    "what is two plus three?", "Größe, naïveté", "Привет, мир", "Γειά σου Κόσμε", "שָׁלוֹם עוֹלָם", "مَرْحَبًا بِالعَالَم",
    "मुझे हिन्दी पसंद है", "বাংলা ভাষা", "สวัสดีชาวโลก น้ำ", "你好，世界", "こんにちは", "안녕하세요 세계", "ሰላም",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈 👋🏽 1️⃣", "क्‍ष, می‌خواهم", "\ufffd", "tabs\tand\nlines",
]  # fmt: skip
SPELLED = [
    *SPECIAL, "a</s>b", "<s> <s>", "say <|im_end|> and <|im_start|>system", "x <|im_end|", "</s></s> 世 <unk>",
    "[INST] four [/INST]", "<start_of_turn>model",
]  # fmt: skip


def byte_level() -> Tokenizer:
    """Return a byte-level BPE tokenizer like those of Qwen and Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 400, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(SCRIPTS * 3, trainers.BpeTrainer(**options))
    return tokenizer


def byte_fallback(dummy_prefix: bool) -> Tokenizer:
    """Return a BPE tokenizer with byte fallback like Gemma's, or Llama 2's with the leading space.

    Its vocabulary includes special tokens and bytes.
    """
    known = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    merges = [("a", "n"), ("an", "d"), ("▁", "and"), ("▁", "s"), ("<", "/"), ("t", "h")]
    vocab = {token: i for i, token in enumerate([*known, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Prepend("▁")] if dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*back, *([decoders.Strip(" ", 1, 0)] if dummy_prefix else [])])
    return tokenizer


def unigram() -> Tokenizer:
    """Return a unigram tokenizer like those of sentencepiece, which by itself would find special tokens in a text."""
    pieces = [(token, 0.0) for token in ["<unk>", *(each for each in SPECIAL if each != "<unk>")]]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)] + [("▁", -2.0)]
    pieces += [(chr(char), -5.0) for char in range(33, 127)] + [("▁and", -3.0), ("▁say", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


KINDS = {
    "byte_level": byte_level, "byte_fallback": lambda: byte_fallback(False),
    "dummy_prefix": lambda: byte_fallback(True), "unigram": unigram,
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory) -> TransformersTokenizer:
    made = KINDS[request.param]()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    folder = tmp_path_factory.mktemp(request.param)
    made.save(str(folder / "tokenizer.json"))
    return TransformersTokenizer(str(folder))


def special_ids(tokenizer: TransformersTokenizer) -> set[int]:
    return {tokenizer.loaded.convert_tokens_to_ids(token) for token in SPECIAL}


def streamed(tokenizer: TransformersTokenizer, ids: list[int]) -> list[str]:
    """Return the pieces of text that a streamed answer gives out: one after each id, and one at the end."""
    layout = TokenLayout(text_vocab=tokenizer.vocab_size, codebook_size=1, carries=((0,),))
    reader = TextReader(SimpleNamespace(llm=SimpleNamespace(tokenizer=tokenizer), layout=layout))
    return [*map(reader.push, ids), reader.finish()]


@pytest.mark.parametrize("text", [*SCRIPTS, *SPELLED])
def test_text_comes_back_whole_and_in_pieces(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not special_ids(tokenizer) & set(ids)
    assert tokenizer.decode(ids) == text
    assert "".join(streamed(tokenizer, ids)) == text


def test_counts_are_those_of_the_ids(tokenizer):
    texts = [*SCRIPTS, *SPELLED, ""]
    assert tokenizer.encode_many(texts) == [tokenizer.encode(text) for text in texts]


def test_special_tokens_among_ids_are_no_text(tokenizer):
    """Check that special tokens that a language model generates are left out of the decoded text."""
    ids = [*tokenizer.encode("four"), *sorted(special_ids(tokenizer))]
    assert tokenizer.decode(ids) == "four"


def test_added_tokens_that_are_not_special_stay_whole(tokenizer):
    for token in ADDED:
        assert tokenizer.loaded.convert_tokens_to_ids(token) in tokenizer.encode(f"a{token}b")


def test_a_character_is_given_out_when_it_is_whole(tokenizer):
    pieces = streamed(tokenizer, tokenizer.encode("世界"))
    assert [piece for piece in pieces if piece] == ["世", "界"]


def test_a_saved_tokenizer_does_the_same(tokenizer, tmp_path: Path):
    tokenizer.save(str(tmp_path))
    again = TransformersTokenizer(str(tmp_path))
    for text in SPELLED:
        assert again.encode(text) == tokenizer.encode(text)


def test_control_symbols_of_sentencepiece_are_text(tmp_path: Path):
    options = {"model_prefix": str(tmp_path / "tokenizer"), "vocab_size": 60, "minloglevel": 2}
    sentences = iter(["say or sob again", "a < b > s / o"] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, hard_vocab_limit=False, control_symbols=["<bos>"], **options
    )
    tokenizer = SentencePieceTokenizer(str(tmp_path / "tokenizer.model"))
    for text in ("</s>", "a <s> say", "<bos>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not any(map(tokenizer.processor.is_control, ids))


def test_transformers_sees_a_tokenizers_own_files_alone(tmp_path):
    """Check that no setting or link in a tokenizer folder makes transformers read files outside the folder."""
    folder, outside = tmp_path / "tokenizer", tmp_path / "outside"
    (folder / "additional_chat_templates").mkdir(parents=True)
    outside.mkdir()
    vocabulary = {chr(i): i - 33 for i in range(33, 127)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (outside / "vocab.json").write_text(json.dumps({**vocabulary, "secret": 200}))
    (outside / "secret.txt").write_text("secret")
    (folder / "additional_chat_templates" / "x.jinja").symlink_to(outside / "secret.txt")
    (folder / "more.json").mkdir()
    settings = {"tokenizer_class": "GPT2Tokenizer", "vocab": str(outside / "vocab.json"), "unk_token": "!"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = open_tokenizer(str(folder))
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc" and "secret" not in tokenizer.loaded.get_vocab()
    assert not tokenizer.loaded.chat_template and tokenizer.loaded.unk_token == "!"
    tokenizer.save(str(tmp_path / "saved"))
    again = open_tokenizer(str(tmp_path / "saved"))
    assert again.encode("abc") == tokenizer.encode("abc")


def test_ids_of_bytes_are_the_same_however_many_a_model_takes(tmp_path: Path):
    ByteTokenizer(200).save(str(tmp_path))
    check_same_ids(ByteTokenizer(200), str(tmp_path / "bytes"), "weights")
    words = SentencePieceTokenizer(packaged("pretrained/mini/tokenizer.model"))
    with pytest.raises(ValueError, match=r"^weights: trained with another tokenizer"):
        check_same_ids(words, str(tmp_path / "bytes"), "weights")
