"""Test checkpoint folders: saved as a whole, loaded unchanged, refused if a file is missing or does not fit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

import omnikit
from omnikit import checkpoint
from omnikit.hparams import different_parts
from omnikit.weights import save_weights


@pytest.fixture(scope="module")
def model(tiny):
    return tiny()


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "stage")


def same(model, other, cast=torch.bfloat16) -> bool:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a.to(cast), b.to(cast)) if a.is_floating_point() else torch.equal(a, b) for a, b in pairs)


def test_a_folder_is_all_that_is_needed(model, folder, monkeypatch):
    monkeypatch.setattr("omnikit.hparams.named_parts.part_files", lambda: folder / "none")
    again = checkpoint.load(folder)
    assert same(model, again)
    assert not again.training
    assert again.llm.tokenizer.encode("two") == model.llm.tokenizer.encode("two")
    assert sorted(path.name for path in folder.iterdir()) == ["hparams.yaml", "model.safetensors", "tokenizer.model"]
    assert str(folder) not in (folder / "hparams.yaml").read_text()


def test_a_loaded_model_is_saved_as_it_was(folder, tmp_path):
    again = checkpoint.load(folder)
    checkpoint.save(again, tmp_path / "copy")
    for name in ("hparams.yaml", "model.safetensors", "tokenizer.model"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("llm", ["qwen2_0.5b", "gemma3_1b", "phi2"])
def test_loading_draws_no_weights_in_vain(llm, tmp_path):
    """Loading a checkpoint draws no random weights, which at true size would take longer than reading the stored ones.
    """
    made = omnikit.build(size="tiny", encoder="whisper_small", adapter="gated_mlp", llm=llm, codec="snac_24khz")
    checkpoint.save(made, tmp_path / "saved")
    before = torch.get_rng_state()
    assert same(made, checkpoint.load(tmp_path / "saved"))
    assert torch.equal(torch.get_rng_state(), before)
    checkpoint.build(tmp_path / "saved")
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_with_lora_has_its_weights(tmp_path):
    """Weights without LoRA can start the training of a system with LoRA, but are refused as a checkpoint of it."""
    pytest.importorskip("peft", reason="omnikit[lora] is not installed")
    plain, lora = (
        omnikit.build(size="tiny", encoder="none", llm="qwen2_0.5b", codec="none", adapter="linear", **options)
        for options in ({}, {"llm.lora": {"rank": 2}})
    )
    checkpoint.save(lora, tmp_path / "saved")
    checkpoint.load(tmp_path / "saved")
    save_weights(plain, tmp_path / "saved")
    with pytest.raises(ValueError, match=r"lacks .*lora_A"):
        checkpoint.load(tmp_path / "saved")


def test_saving_again_replaces_and_keeps_other_files(model, folder):
    (folder / "README.md").write_text("card")
    (folder / "model.safetensors").write_bytes(b"old")
    checkpoint.save(model, folder)
    assert (folder / "README.md").read_text() == "card"
    assert same(model, checkpoint.load(folder))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("step", range(6))
def test_a_kill_leaves_the_old_or_the_new(model, folder, monkeypatch, step):
    """A kill at any operation of saving that changes the disk leaves the old checkpoint or the new one."""
    with torch.no_grad():
        changed = checkpoint.load(folder)
        changed.new_text_embeddings.head.weight.add_(1)
    steps = iter(range(100))

    def dying(function):
        def call(*args, **kwargs):
            if next(steps) == step:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(checkpoint, "save_weights", dying(checkpoint.save_weights))
    monkeypatch.setattr(os, "rename", dying(os.rename))
    monkeypatch.setattr(shutil, "rmtree", dying(shutil.rmtree))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(changed, folder)
    monkeypatch.undo()
    after = checkpoint.load(folder)
    assert same(after, changed if step == 5 else model)
    checkpoint.save(changed, folder)
    assert same(checkpoint.load(folder), changed)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def refused(folder, **options) -> str:
    with pytest.raises(ValueError) as error:
        checkpoint.load(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["hparams.yaml", "model.safetensors", "tokenizer.model"])
def test_a_missing_piece_is_named(folder, name):
    (folder / name).unlink()
    assert f"{folder}: {name} is missing" in refused(folder)


def test_bad_folders_are_refused(folder, tmp_path):
    assert "no such folder" in refused(tmp_path / "none")
    assert "--device nonsense" in refused(folder, device="nonsense")
    text = (folder / "hparams.yaml").read_text()
    (folder / "hparams.yaml").write_text(text.replace("!new:omnikit.model.OmniLM", "!new:os.system"))
    assert "!new:os.system is refused" in refused(folder)
    (folder / "hparams.yaml").write_text(text.replace("width: 16", "width: 32"))
    assert "does not fit" in refused(folder)
    (folder / "hparams.yaml").write_text(text.replace("width: 16", "girth: 16"))
    assert "girth" in refused(folder)
    (folder / "hparams.yaml").write_text("a: 1")
    assert "names no model" in refused(folder)


@pytest.fixture
def shipped(folder, tmp_path, monkeypatch) -> Path:
    """Folder of systems that come with the package, with a tiny one named `mini_whisper`; the working directory is
    empty."""
    shutil.copytree(folder, tmp_path / "pretrained" / "mini_whisper")
    shutil.copytree(checkpoint.SHIPPED, tmp_path / "pretrained" / "mini")
    (tmp_path / "pretrained" / "no_system").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "pretrained"


def test_a_shipped_system_is_loaded_by_its_name(model, shipped):
    assert checkpoint.shipped_systems() == ["mini", "mini_whisper"]
    assert same(model, checkpoint.load("mini_whisper")) and not same(model, checkpoint.load("mini"))
    assert same(model, omnikit.load(Path("mini_whisper")).model)
    assert checkpoint.weights_of("mini_whisper").parent == shipped / "mini_whisper"
    assert checkpoint.weights_of(None) == Path(checkpoint.SHIPPED) / "model.safetensors"


def test_a_folder_of_that_name_in_the_working_directory_comes_first(shipped):
    shutil.copytree(shipped / "mini_whisper", "mini")
    assert checkpoint.existing("mini") == Path("mini")
    os.rename("mini", "mini.old")  # left by a kill
    assert checkpoint.existing("mini") == Path("mini.old")
    Path("mini_whisper").mkdir()
    assert "mini_whisper: hparams.yaml is missing" in refused("mini_whisper")


def test_an_unknown_name_is_told_the_choices(shipped):
    message = "checkpoint mini_wisper: no such folder or shipped system"
    assert refused("mini_wisper") == f"{message}; did you mean mini_whisper? (choices: mini, mini_whisper)"
    shutil.rmtree(shipped / "mini_whisper")
    assert refused("mini_wisper") == f"{message} (choices: mini)"
    assert "no such folder" in refused("mini/whisper/x") and "choices" not in refused("mini/whisper/x")


def test_a_class_of_ones_own_is_allowed_by_name(folder, tmp_path, monkeypatch):
    """Classes that the user allowed in a checkpoint may name files and need real tensors; omnikit's own may not."""
    (tmp_path / "mine.py").write_text(
        "import omnikit.patterns, torch\n"
        "class Mine(omnikit.patterns.Delayed):\n"
        "    def __init__(self, *, lexicon, **options):\n"
        "        super().__init__(**options)\n"
        "        self.lexicon, self.sum = lexicon, float(torch.ones(3).sum())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (folder / "hparams.yaml").read_text()
    assert "!name:omnikit.patterns.Delayed\n" in text
    own = "!name:mine.Mine\n  lexicon: ../words.txt\n"
    (folder / "hparams.yaml").write_text(text.replace("!name:omnikit.patterns.Delayed\n", own))
    assert "!name:mine.Mine is refused" in refused(folder)
    loaded = checkpoint.load(folder, allow=("mine",)).pattern
    assert (loaded.lexicon, loaded.sum) == ("../words.txt", 3.0)


def test_weights_of_other_parts_are_refused_by_name(folder, tiny, model):
    twin = tiny()
    with torch.no_grad():
        twin.new_text_embeddings.head.weight.zero_()
    checkpoint.restore(twin, folder)
    assert same(twin, model)
    other = tiny({"pattern": "parallel", "codec": "snac_mini"})
    with pytest.raises(ValueError, match=r"codec is .*MelRVQ there and .*SnacCodec here; pattern is .*Delayed there"):
        checkpoint.restore(other, folder)
    with pytest.raises(ValueError, match="adapter is hidden 8 there and hidden 12 here"):
        checkpoint.restore(tiny({}, {"adapter.hidden": 12}), folder)
    with pytest.raises(ValueError, match=r"llm is config\.intermediate_size 16 there and .*size 24 here"):
        checkpoint.restore(tiny({}, {"llm.config.intermediate_size": 24}), folder)


def test_weights_trained_with_another_tokenizer_are_refused(folder, tiny):
    """Their shapes may fit, but their ids stand for other texts."""
    shutil.copy(checkpoint.PRETRAINED / "mini" / "tokenizer.model", folder)
    with pytest.raises(ValueError, match=r"stage: trained with another tokenizer \(.*use --llm.tokenizer .*model$"):
        checkpoint.restore(tiny(), folder)
    with pytest.raises(ValueError, match=r"^llm.weights .*stage: trained with another tokenizer"):
        tiny({}, {"llm.weights": str(folder)}).llm.load_weights()


def test_another_size_of_a_part_is_named(tiny):
    published = tiny().recipe
    other = published.replace("  codebook_size: 256", "  codebook_size: 256\n  size: tiny")
    assert different_parts(published, other) == {"codec": ("size None", "size tiny")}


def test_parts_equal_themselves_whatever_their_options_are(tiny):
    """Parts of two checkpoints with equal options are equal, even with tuples and nested classes among the options.

    Both are tagged YAML nodes, which never compare equal.
    """
    options = "{config: {a: (3, 3), b: [(1, 2)]}, c: !name:NAME }"
    text = f"llm: !new:omnikit.llms.transformers_lm.TransformersLM {options}\n"
    texts = [text.replace("NAME", name) for name in ("torch.nn.ReLU", "torch.nn.GELU")]
    assert different_parts(texts[0], texts[0]) == {}
    assert different_parts(texts[0], texts[0].replace("(1, 2)", "(1, 3)")).keys() == {"llm"}
    assert different_parts(*texts) == {"llm": ("c !name:torch.nn.ReLU", "c !name:torch.nn.GELU")}


def test_a_model_without_recipe_cannot_be_saved(model, tmp_path):
    recipe, model.recipe = model.recipe, ""
    try:
        with pytest.raises(ValueError, match="not built from hparams"):
            checkpoint.save(model, tmp_path / "a")
    finally:
        model.recipe = recipe
