"""Test the average of checkpoints, and which checkpoints have none."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from omnikit import checkpoint
from omnikit.hparams import build_parts
from omnikit.weights import stored_tensors


@pytest.fixture
def two(tiny, tmp_path):
    """Return the folders of two checkpoints of the tiny system, with different weights."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        model = tiny()
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        checkpoint.save(model, folder, torch.float32)
    return folders


def test_the_weights_are_the_means(run, two, tmp_path):
    out = tmp_path / "mean"
    assert run("average", *two, "-o", out) == (0, f"{out}\n", "")
    one, other, mean = (stored_tensors(folder) for folder in (*two, out))
    assert mean.keys() == one.keys() and not all(torch.equal(one[name], other[name]) for name in one)
    for name, tensor in mean.items():
        expected = (one[name] + other[name]) / 2 if tensor.is_floating_point() else one[name]
        torch.testing.assert_close(tensor, expected)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in two[0].iterdir())
    for name in ("hparams.yaml", "tokenizer.model"):
        assert (out / name).read_bytes() == (two[0] / name).read_bytes()
    checkpoint.load(out)


def test_a_checkpoint_may_be_given_more_than_once(two, tmp_path):
    checkpoint.average([two[0], two[1], two[1]], tmp_path / "mean")
    one, other, mean = (stored_tensors(folder) for folder in (*two, tmp_path / "mean"))
    for name in (name for name, tensor in one.items() if tensor.is_floating_point()):
        torch.testing.assert_close(mean[name], (one[name] + 2 * other[name]) / 3)


def test_the_stored_type_stays(saved, two, tmp_path):
    for folders, dtype in (([saved, saved], torch.bfloat16), ([saved, two[0]], torch.float32)):
        checkpoint.average(folders, tmp_path / "mean")
        floats = [tensor for tensor in stored_tensors(tmp_path / "mean").values() if tensor.is_floating_point()]
        assert {tensor.dtype for tensor in floats} == {dtype}


def test_checkpoints_of_other_parts_have_no_average(run, tiny, saved, tmp_path):
    checkpoint.save(tiny({"codec": "snac_mini"}), tmp_path / "snac")
    checkpoint.save(tiny(options={"llm.config.num_hidden_layers": 3}), tmp_path / "deep")
    for name, message in (("snac", "codec is snac_mini"), ("deep", "llm is ")):
        status, _, error = run("average", saved, tmp_path / name, "-o", tmp_path / "mean")
        assert status == 2 and f"{tmp_path / name / 'hparams.yaml'}: has other parts than {saved}" in error
        assert message in error
    for folders in ([saved], []):
        with pytest.raises(ValueError, match=f"needs two checkpoints or more, got {len(folders)}"):
            checkpoint.average(folders, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_checkpoints_with_other_public_weights_have_no_average(two, tmp_path):
    for folder, fingerprint in zip(two, ("a" * 64, "b" * 64), strict=True):
        stored = stored_tensors(folder)
        save_file({k: v for k, v in stored.items() if not k.startswith("encoder.")}, folder / "model.safetensors")
        text = (folder / "hparams.yaml").read_text()
        public = f"public_weights:\n  encoder: {{name: base, fingerprint: {fingerprint}}}\n"
        (folder / "hparams.yaml").write_text(text + public)
    with pytest.raises(ValueError, match=r"two/hparams.yaml: has other parts .*public weights is .*bbb.*aaa"):
        checkpoint.average(two, tmp_path / "mean")
    checkpoint.average([two[0]] * 2, tmp_path / "mean")
    assert f'fingerprint: "{"a" * 64}"' in (tmp_path / "mean" / "hparams.yaml").read_text()


def test_checkpoints_with_lora_have_no_average(tmp_path):
    pytest.importorskip("peft", reason="omnikit[lora] is not installed")
    names = {"encoder": "none", "llm": "qwen2_0.5b", "codec": "none", "adapter": "linear"}
    model = build_parts(names, {"size": "tiny", "pretrained": False, "llm.lora": {"rank": 2}})["model"]
    checkpoint.save(model, tmp_path / "lora")
    with pytest.raises(ValueError, match=r"lora.*: has LoRA weights, of which there is no mean"):
        checkpoint.average([tmp_path / "lora"] * 2, tmp_path / "mean")
