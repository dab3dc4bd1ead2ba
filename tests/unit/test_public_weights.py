"""Test checkpoints that name public weights: their fingerprint, where they are found, and what is refused.

The weights of most tests are a stand-in: a tiny Whisper in the formats of openai-whisper, transformers and omnikit.
"""

from __future__ import annotations

import os
import shutil
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration
from whisper.model import ModelDimensions

import omnikit
from omnikit import checkpoint
from omnikit.data import array_cache
from omnikit.encoders.whisper import WhisperEncoder
from omnikit.hparams import build_part
from omnikit.hub import CONFIG
from omnikit.public_weights import FOLDER, fingerprint, in_folder, is_public
from omnikit.weights import save_weights, stored_tensors

SIZES = {"n_mels": 80, "n_ctx": 200, "width": 16, "heads": 2, "layers": 1}
BASE = "50867345055f3f32eeb235030c07d3ae77a1b592f356effb12b335ba8a67cebf"
"""Fingerprint of the encoder of Whisper base."""
REAL = Path(os.environ.get(FOLDER) or "none") / "base.pt"


def encoder(weights: Path | str | None, **changes) -> WhisperEncoder:
    return WhisperEncoder(**SIZES | changes, weights=None if weights is None else str(weights))


def loaded(weights: Path | str) -> WhisperEncoder:
    net = encoder(weights)
    net.load_weights()
    return net


def published(seed: int, folder: Path, name: str = "base") -> None:
    """Write a tiny Whisper, in float16 precision like the real ones, in three formats to `folder/<format>`."""
    torch.manual_seed(seed)
    theirs = WhisperForConditionalGeneration(WhisperConfig(
        num_mel_bins=80, max_source_positions=200, d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=60,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=8, pad_token_id=0,
        bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip
    for parameter in theirs.parameters():
        parameter.data = (torch.randn_like(parameter) * 0.1).half().float()
    theirs.save_pretrained(folder / "transformers" / name)
    ours = loaded(folder / "transformers" / name)
    save_weights(ours, folder / "ours" / f"{name}.safetensors")
    dims = ModelDimensions(80, 200, 16, 2, 1, 60, 4, 16, 2, 1)
    state = {f"encoder.{key}": tensor.half() for key, tensor in ours.encoder.state_dict().items()}
    (folder / "openai").mkdir()
    torch.save({"dims": vars(dims), "model_state_dict": state}, folder / "openai" / f"{name}.pt")


FORMATS = {"openai": "base.pt", "transformers": "base", "ours": "base.safetensors"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    published(1, folder)
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("others")
    published(2, folder)
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Block the network, and let the caches of all libraries be empty."""

    def blocked(*_: object, **__: object) -> None:
        raise urllib.error.URLError("blocked")

    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", blocked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def build(tiny, offline, monkeypatch):
    """Return a function that builds a tiny system whose encoder is the stand-in, by its public name."""

    def of(folder: Path, name: str = "base"):
        monkeypatch.setenv(FOLDER, str(folder))
        options = {"encoder.pad_to_30s": False, "encoder.weights": name}
        model = tiny({"encoder": "whisper_base"}, options)
        model.load_weights()
        monkeypatch.delenv(FOLDER)
        return model

    return of


@pytest.fixture
def stage(build, weights, tmp_path) -> Path:
    checkpoint.save(build(weights / "openai"), tmp_path / "stage")
    return tmp_path / "stage"


def refused(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_all_formats_have_one_fingerprint(weights, others):
    found = {fingerprint(loaded(weights / form / name).state_dict()) for form, name in FORMATS.items()}
    assert len(found) == 1
    assert found != {fingerprint(loaded(others / "openai" / "base.pt").state_dict())}
    cached = {array_cache.fingerprint(loaded(weights / form / name)) for form, name in FORMATS.items()}
    assert len(cached) == 1, "features would be computed once for each format"


def test_a_fingerprint_depends_on_names_shapes_and_values_in_bfloat16():
    one = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3])}
    same = [{"b": one["b"], "a": one["a"].half()}, {**one, "a": one["a"] + 1e-4}, {**one, "x.lora_A.w": one["a"]}]
    assert {fingerprint(each) for each in same} == {fingerprint(one)}
    other = [{**one, "a": one["a"].T}, {**one, "b": one["b"] + 1}, {"c": one["a"], "b": one["b"]}, {"a": one["a"]}]
    other.append({**one, "a": one["a"] + 0.1})
    assert len({fingerprint(each) for each in [one, *other]}) == 6


def test_names_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert all(map(is_public, ("base", "large-v3", "owner/name", "qwen2.5")))
    assert not any(map(is_public, (None, "base.pt", "a.safetensors", "/base", "./base", "../base", "a/b/c", "~/a")))
    (tmp_path / "base").mkdir()
    assert not is_public("base")


def test_a_checkpoint_names_the_weights_and_has_no_tensors_of_them(stage, build, weights, monkeypatch):
    assert not [name for name in stored_tensors(stage) if name.startswith("encoder.")]
    text = (stage / "hparams.yaml").read_text()
    assert 'public_weights:\n  encoder: {name: "base", fingerprint: "' in text
    built = build(weights / "openai").state_dict()
    for form in FORMATS:
        monkeypatch.setenv(FOLDER, str(weights / form))
        model = checkpoint.load(stage)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor.bfloat16(), built[name].bfloat16()), name
        assert model.encoder.weights is None
    given = checkpoint.load(stage, public_weights={"encoder": weights / "openai" / "base.pt"})
    assert torch.equal(given.encoder.encoder.conv1.weight, built["encoder.encoder.conv1.weight"])  # not rounded


def test_a_loaded_model_is_saved_as_it_was(stage, weights, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(weights / "transformers"))
    model = checkpoint.load(stage)
    checkpoint.save(model, tmp_path / "again")
    for name in ("hparams.yaml", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (stage / name).read_bytes()
    checkpoint.save(model, tmp_path / "whole", whole=True)
    monkeypatch.delenv(FOLDER)
    assert checkpoint.load(tmp_path / "whole").encoder.public is None


def test_weights_that_were_trained_or_are_a_users_file_are_stored(build, weights, tiny, tmp_path):
    model = build(weights / "openai")
    model.encoder.encoder.ln_post.bias.data[0] += 1
    own = tiny({"encoder": "whisper_base"}, {
        "encoder.pad_to_30s": False, "encoder.weights": str(weights / "openai" / "base.pt"),
    })  # fmt: skip
    own.load_weights()
    for each in (model, own):
        checkpoint.save(each, tmp_path / "stage")
        again = checkpoint.load(tmp_path / "stage")
        assert torch.equal(again.encoder.encoder.ln_post.bias, each.encoder.encoder.ln_post.bias.bfloat16().float())


def test_other_weights_are_refused(stage, weights, others, monkeypatch, tmp_path):
    path = others / "openai" / "base.pt"
    message = rf": the weights of {path} have the fingerprint (\w{{12}}), "
    message += r"needed are base \(fingerprint (?!\1)\w{12}\)$"
    refused(rf"^{stage}/hparams.yaml: --encoder.weights{message}",
            lambda: checkpoint.load(stage, public_weights={"encoder": path}))  # fmt: skip
    monkeypatch.setenv(FOLDER, str(others / "openai"))
    refused(rf"^{stage}/hparams.yaml: encoder{message}", lambda: omnikit.load(stage))
    refused(rf"--encoder.weights {path}: .* names public weights of no part, so it cannot be used$",
            lambda: omnikit.load(weights={"encoder": path}))  # fmt: skip
    wide = encoder(None, width=32)
    save_weights(wide, tmp_path / "wide.safetensors")
    refused("--encoder.weights: .*wide.safetensors does not fit WhisperEncoder",
            lambda: omnikit.load(stage, weights={"encoder": tmp_path / "wide.safetensors"}))  # fmt: skip


def test_without_network_one_line_says_what_is_missing(stage, build, weights, run, tmp_path, monkeypatch):
    message = r"encoder: the public weights base \(openai-whisper\) are not here and cannot be fetched; put base.pt "
    message += r"into a folder and set OMNIKIT_WEIGHTS to it, or give --encoder.weights \(.*blocked"
    refused(message, lambda: omnikit.load(stage))
    monkeypatch.chdir(tmp_path)
    status, out, err = run("chat", "two", "--checkpoint", stage)
    assert (status, out, err.count("\n")) == (2, "", 1)
    checkpoint.save(build(weights / "transformers", "owner/base"), tmp_path / "hub")
    message = r"encoder: the public weights owner/base \(the hub\) are not here .* put the folder base into a folder"
    refused(message, lambda: omnikit.load(tmp_path / "hub"))
    refused("--encoder.weights: .*none.pt: no such file", lambda: omnikit.load(stage, weights={"encoder": "none.pt"}))
    (tmp_path / "base").mkdir()
    refused("base could be meant or base in this folder", lambda: omnikit.load(stage))
    monkeypatch.setenv(FOLDER, "nowhere")
    refused("OMNIKIT_WEIGHTS nowhere: no such folder", lambda: omnikit.load(stage))


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "one value", "other content", "not finite"])
@pytest.mark.parametrize("form", ["openai", "ours"])
def test_a_damaged_file_is_refused(stage, weights, tmp_path, form, damage):
    file = Path(shutil.copy(weights / form / FORMATS[form], tmp_path))
    data = bytearray(file.read_bytes())
    if damage == "one value":
        tensor = loaded(file).encoder.conv2.weight.to(torch.float16 if form == "openai" else torch.bfloat16)
        at = bytes(data).find(tensor.detach().view(torch.uint8).numpy().tobytes()[:64])
        data[at + 1] ^= 0x40
    changed = {"empty": b"", "text": b"no weights\n" * 9, "truncated": data[: len(data) // 2], "one value": data}
    if damage in changed:
        file.write_bytes(changed[damage])
    elif form == "openai":
        content = torch.load(file, weights_only=True)
        content["model_state_dict"]["encoder.conv1.bias"][0] = torch.nan
        torch.save([1] if damage == "other content" else content, file)
    else:
        part = build_part("codec", "mel_rvq") if damage == "other content" else loaded(file)
        tensors = {name: tensor.clone() for name, tensor in part.state_dict().items()}
        save_weights(part, file, weights=tensors)
        if damage == "not finite":
            data = bytearray(file.read_bytes())
            data[-2:] = b"\xc0\x7f"
            file.write_bytes(data)
    refused(r"hparams.yaml: --encoder.weights: .*base\.",
            lambda: checkpoint.load(stage, public_weights={"encoder": file}))  # fmt: skip


def test_description_and_shapes_need_no_weights(stage, run):
    status, out, err = run("info", "--checkpoint", stage)
    assert (status, err) == (0, "")
    assert "weights     encoder: base (fingerprint " in out and "encoders.whisper.WhisperEncoder" in out
    assert checkpoint.outline(stage).encoder.dim == 16
    assert checkpoint.build(stage).encoder.dim == 16


def test_commands_take_a_file(stage, weights, others, run, tmp_path):
    words = ["speak", "two", "--checkpoint", stage, "--output", tmp_path / "a.wav", "--encoder.weights"]
    status, _, err = run(*words, weights / "openai" / "base.pt")
    assert status == 0, err
    status, _, err = run(*words, others / "openai" / "base.pt")
    assert (status, err.count("\n")) == (2, 1) and "have the fingerprint" in err


def test_the_next_stage_starts_from_it(stage, build, weights, others, monkeypatch):
    last = build(weights / "openai")
    for name, file in (("base", None), (str(weights / "ours" / "base.safetensors"), None), ("base", weights / "ours")):
        model = build(others / "openai")
        model.encoder.weights = name
        monkeypatch.setenv(FOLDER, str(file or weights / "transformers"))
        checkpoint.restore(model, stage)
        assert torch.equal(model.encoder.encoder.conv1.weight.bfloat16(), last.encoder.encoder.conv1.weight.bfloat16())
        assert model.encoder.public == checkpoint.outline(stage).encoder.public
    monkeypatch.setenv(FOLDER, str(others / "openai"))
    model = build(others / "openai")
    monkeypatch.setenv(FOLDER, str(others / "openai"))
    refused("encoder: .* have the fingerprint", lambda: checkpoint.restore(model, stage))


@pytest.fixture
def named_codec_and_backbone(tiny, offline, monkeypatch, tmp_path):
    """Return a model whose codec and backbone are public weights, which lie in the folder of `OMNIKIT_WEIGHTS`."""
    folder = tmp_path / "weights"
    first = tiny({"codec": "snac_mini"})
    options = {name: first.codec.numbers[name] for name in ("sampling_rate", "vq_strides")}
    (folder / "snac").mkdir(parents=True)
    torch.save(first.codec.snac.state_dict(), folder / "snac" / "pytorch_model.bin")
    (folder / "snac" / CONFIG).write_text(repr(options).replace("'", '"'))
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_config(first.llm.config)
    network.save_pretrained(folder / "lm")
    monkeypatch.setenv(FOLDER, str(folder))
    model = tiny({"codec": "snac_mini"}, {"codec.weights": "owner/snac", "llm.weights": "owner/lm"})
    model.load_weights()
    return model


def test_codec_and_backbone_by_name(named_codec_and_backbone, tmp_path, monkeypatch):
    model = named_codec_and_backbone
    checkpoint.save(model, tmp_path / "stage")
    assert {name.partition(".")[0] for name in stored_tensors(tmp_path / "stage")} == {
        "encoder", "adapter", "new_text_embeddings", "new_audio_embeddings",
    }  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        again = checkpoint.load(tmp_path / "stage", dtype=dtype)
        assert again.dtype == dtype and again.codec.public.name == "owner/snac"
        for name, tensor in model.llm.state_dict().items():
            assert torch.equal(again.llm.state_dict()[name], tensor.to(dtype)), name
    skeleton = checkpoint.load(tmp_path / "stage", skeleton=True)
    ids = torch.tensor([[1, 2]])
    assert torch.equal(skeleton.llm.embed(ids), model.llm.embed(ids).bfloat16())
    model.freeze_all_but(["llm"])
    checkpoint.save(model, tmp_path / "trained")
    assert any(name.startswith("llm.") for name in stored_tensors(tmp_path / "trained"))
    monkeypatch.delenv(FOLDER)
    refused(r"llm: the public weights owner/lm \(the hub\) are not here", lambda: checkpoint.load(tmp_path / "stage"))


@pytest.mark.skipif(not REAL.is_file(), reason=f"real weights: set {FOLDER} to a folder with openai-whisper's base.pt")
def test_real_whisper_base(tiny, tmp_path):
    """A system with the encoder of Whisper base is saved by name, and answers as before after loading."""
    assert in_folder("base") == str(REAL)
    options = {"encoder.width": 512, "encoder.heads": 8, "encoder.layers": 6, "encoder.n_ctx": 1500}
    model = tiny({"encoder": "whisper_base"}, options)
    model.load_weights()
    assert model.encoder.public.fingerprint == BASE
    checkpoint.save(model, tmp_path / "stage", dtype=torch.float32)
    assert (tmp_path / "stage" / "model.safetensors").stat().st_size < 2**23
    wav = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    again = checkpoint.load(tmp_path / "stage")
    with torch.no_grad():
        features = [each.encode_speech(wav, torch.tensor([16000]))[0] for each in (model, again)]
    assert torch.equal(*features)
