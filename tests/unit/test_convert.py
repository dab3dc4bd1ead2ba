"""Test the conversion of a published Mini-Omni folder at toy size, with files written by the original libraries."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import whisper
import yaml
from full_disk import full_disk
from snac import SNAC
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import omnikit
from omnikit import checkpoint, cli
from omnikit.audio.io import load_audio
from omnikit.convert.mini_omni import convert, from_state_dict
from omnikit.convert.mini_omni_names import published_shapes, read_sizes
from omnikit.tasks import TASKS, make_prompt

CONFIG = {
    "name": "toy", "block_size": 256, "n_layer": 1, "n_embd": 16, "n_head": 2, "n_query_groups": 1, "head_size": 8,
    "intermediate_size": 12, "padded_vocab_size": 964, "vocab_size": 964, "norm_eps": 1e-6, "rope_base": 1000000,
    "add_qkv_bias": True, "bias": False, "rotary_percentage": 1.0, "parallel_residual": False, "lm_head_bias": False,
    "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "text_vocab_size": 404, "audio_vocab_size": 80,
    "cat_audio_vocab_size": 560, "whisper_adapter_dim": 32, "post_adapter": False, "asr_adapter": "llamamlp",
    "tie_word_embeddings": False,
}  # fmt: skip
SNAC_CONFIG = {
    "sampling_rate": 24000, "encoder_dim": 4, "encoder_rates": [2, 4, 5], "decoder_dim": 16,
    "decoder_rates": [5, 4, 2], "attn_window_size": None, "codebook_size": 16, "codebook_dim": 4,
    "vq_strides": [4, 2, 1], "noise": True, "depthwise": True,
}  # fmt: skip
DIMS = {
    "n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 32, "n_audio_head": 2, "n_audio_layer": 1,
    "n_vocab": 50, "n_text_ctx": 4, "n_text_state": 32, "n_text_head": 2, "n_text_layer": 1,
}  # fmt: skip


def write_tokenizer(folder: Path, vocab_size: int = 300) -> None:
    """Write a byte-level BPE tokenizer, like that of Qwen2, to a folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([f"what is {n} plus two, is it {3 * n}?" for n in range(1000)] * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def write_whisper(file: Path, **changes: int) -> None:
    dims = whisper.model.ModelDimensions(**DIMS | changes)
    model = whisper.model.Whisper(dims)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save({"dims": asdict(dims), "model_state_dict": model.state_dict()}, file)


def write_snac(folder: Path, **changes: object) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SNAC_CONFIG | changes))
    torch.save(SNAC(**SNAC_CONFIG | changes).state_dict(), folder / "pytorch_model.bin")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Return a folder with the published Mini-Omni and SNAC at toy size, which tests must not change."""
    return write_published(tmp_path_factory.mktemp("published"))


def write_published(root: Path) -> Path:
    """Write published Mini-Omni and SNAC at toy size to the folders `mini_omni` and `snac`, and return their parent."""
    folder = root / "mini_omni"
    folder.mkdir()
    torch.manual_seed(0)
    shapes = published_shapes(read_sizes(CONFIG))
    torch.save({name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}, folder / "lit_model.pth")
    (folder / "model_config.yaml").write_text(yaml.safe_dump(CONFIG))
    write_tokenizer(folder)
    write_whisper(folder / "small.pt")
    write_snac(root / "snac")
    return root


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "omni"
    convert(published / "mini_omni", out, codec=str(published / "snac"))
    return out


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """Return a copy of the published Mini-Omni folder at toy size that a test may change."""
    return shutil.copytree(published / "mini_omni", tmp_path / "mini_omni")


def logits(model, steps: torch.Tensor) -> list[torch.Tensor]:
    with torch.inference_mode():
        hidden = model(steps[None])
        return [model.text_logits(hidden.text), *model.audio_logits(hidden.audio)]


def test_round_trip_gives_the_same_logits(published, converted):
    """A checkpoint converted from Mini-Omni computes the same logits as the published weights, within rounding.

    The checkpoint is computed without transformers.
    """
    state = torch.load(published / "mini_omni" / "lit_model.pth", weights_only=True)
    direct, loaded = from_state_dict(state, CONFIG), checkpoint.load(converted)
    steps = make_prompt(TASKS["T1A2"], direct.layout, text=[3, 1, 4]).steps
    for ours, theirs in zip(logits(loaded, steps), logits(direct, steps), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert sorted(p.name for p in converted.iterdir() if p.suffix in (".pth", ".pt", ".bin")) == []


def test_encoder_is_whispers(published, converted):
    """The converted audio encoder pads recordings to 30 s and truncates the features, as the published code does."""
    model = checkpoint.load(converted)
    theirs = whisper.load_model(str(published / "mini_omni" / "small.pt"), device="cpu")
    wav = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(wav[0]))
    with torch.inference_mode():
        ours, (frames,) = model.encoder(wav, torch.tensor([16000]))
        expected = theirs.embed_audio(mel[None])[:, : int(1000 / 20) + 1]
    assert frames == 51
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_codec_is_snac(published, converted):
    model, theirs = checkpoint.load(converted), SNAC.from_pretrained(str(published / "snac"))
    wav = torch.randn(1, 1, 1600, generator=torch.Generator().manual_seed(0)) * 0.3
    with torch.inference_mode():
        assert torch.equal(model.codec.encode(wav[0]), model.codec.pack(theirs.encode(wav)))
    assert model.codec.sample_rate == 24000


def test_tokenizer_is_the_published_one(published, converted):
    theirs = Tokenizer.from_file(str(published / "mini_omni" / "tokenizer.json"))
    omni = omnikit.load(converted)
    for text in ("what is two", "käse ☕ 七", " four\n"):
        ids = omni.model.llm.tokenizer.encode(text)
        assert ids == theirs.encode(text).ids
        assert omni.model.llm.tokenizer.decode([*ids, 339]) == text


def test_the_command_and_an_answer(published, tmp_path, monkeypatch, capsys):
    out, answer = tmp_path / "omni", tmp_path / "a.wav"
    wav = tmp_path / "q.wav"
    import soundfile

    soundfile.write(wav, torch.randn(16000).mul(0.1).numpy(), 16000)
    run(monkeypatch, "convert", "mini_omni", published / "mini_omni", out, "--codec", published / "snac")
    run(monkeypatch, "ask", wav, "-o", answer, "--checkpoint", out, "--max_steps", 20)
    assert "s of speech" in capsys.readouterr().err
    assert run(monkeypatch, "info", "--checkpoint", out) == 0
    assert "TransformersTokenizer" in capsys.readouterr().out
    assert len(load_audio(str(answer), 24000)) % 160 == 0


def test_a_full_disk_leaves_nothing_and_the_next_call_goes_on(published, converted, tmp_path, monkeypatch, capsys):
    words = ["convert", "mini_omni", published / "mini_omni", tmp_path / "omni", "--codec", published / "snac"]
    for size in (0, 3000, 100_000):
        with full_disk(size):
            assert run(monkeypatch, *words) == 2
        err = capsys.readouterr().err.rpartition("\r")[2]
        assert err.startswith(f"error: {tmp_path / 'omni'}: cannot be written (File too large)")
        assert err.count("\n") == 1
        assert not list(tmp_path.iterdir())
    assert run(monkeypatch, *words) == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "omni").iterdir()}
    assert made == {path.name: path.read_bytes() for path in converted.iterdir()}


def run(monkeypatch, *words) -> int:
    monkeypatch.setattr("sys.argv", ["omnikit", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0


def test_without_a_codec_it_writes_and_says_why_it_cannot_speak(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    convert(folder, tmp_path / "omni")
    assert "will only write: hubertsiuzdak/snac_24khz" in caplog.text
    omni = omnikit.load(tmp_path / "omni")
    omni.decoding = omnikit.api.Decoding(max_steps=5)
    omni.chat("what is two plus two")
    omni.transcribe(torch.randn(16000))
    with pytest.raises(ValueError, match="codec: this system has none"):
        omni.speak("four")


@pytest.mark.parametrize("name", ["lit_model.pth", "model_config.yaml", "tokenizer.json", "small.pt"])
def test_a_missing_file_is_named(folder, published, tmp_path, monkeypatch, capsys, name):
    (folder / name).unlink()
    if name == "tokenizer.json":
        (folder / "tokenizer_config.json").unlink()
    words = ["convert", "mini_omni", folder, tmp_path / "out", "--codec", published / "snac"]
    assert run(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}: {name} is missing") and error.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


class Harm:
    def __reduce__(self):
        return (open, ("harm", "w"))


def spoil(folder: Path, what: str) -> None:
    if what == "pickle":
        torch.save({"lm_head.weight": Harm()}, folder / "lit_model.pth")
    elif what == "no pickle":
        (folder / "lit_model.pth").write_text("words")
    elif what == "tokenizer":
        write_tokenizer(folder, vocab_size=400)
    elif what == "config":
        (folder / "model_config.yaml").write_text(yaml.safe_dump(CONFIG | {"n_layer": 2}))
    elif what == "whisper":
        write_whisper(folder / "small.pt", n_audio_state=16)
    elif what == "no whisper":
        torch.save({"a": torch.zeros(1)}, folder / "small.pt")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("pickle", r"lit_model.pth: not a file of tensors"),
        ("no pickle", r"lit_model.pth: not a file of tensors"),
        ("tokenizer", r"llm.tokenizer: .*mini_omni has \d+ ids, the language model only 340"),
        ("config", r"lit_model.pth does not fit model_config.yaml: lacks transformer.h.1"),
        ("whisper", r"encoder does not fit model_config.yaml: whisper_adapter_dim expected 32, found 16"),
        ("no whisper", r"small.pt: not a file of openai-whisper"),
    ],
)
def test_what_does_not_fit_is_refused(folder, published, tmp_path, monkeypatch, what, message):
    monkeypatch.chdir(tmp_path)
    spoil(folder, what)
    with pytest.raises(ValueError, match=message) as error:
        convert(folder, tmp_path / "out", codec=str(published / "snac"))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out*")) and not (tmp_path / "harm").exists()


def test_another_codec_is_refused(folder, tmp_path):
    write_snac(tmp_path / "other", codebook_size=32)
    with pytest.raises(ValueError, match="codes per codebook expected 16, found 32"):
        convert(folder, tmp_path / "out", codec=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"no such folder \(--codec"):
        convert(folder, tmp_path / "out", codec=str(tmp_path / "none"))
    (tmp_path / "other" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json is missing"):
        convert(folder, tmp_path / "out", codec=str(tmp_path / "other"))
    assert not list(tmp_path.glob("out*"))


def test_other_kinds_are_refused(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "convert", "maxi_omni", tmp_path, tmp_path / "out") == 2
    assert "choices: mini_omni" in capsys.readouterr().err
    assert run(monkeypatch, "convert", "mini_omni", tmp_path / "none", tmp_path / "out") == 2
    assert "none: no such folder" in capsys.readouterr().err
