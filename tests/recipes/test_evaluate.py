"""Each evaluation as a debug run: an untrained system, a tiny corpus made here."""

import json

import pytest
import torch

from omnikit.audio import save_audio

ASR = "recipes/LibriSpeech/ASR/evaluate.py"


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(int(16000 * seconds), generator=torch.Generator().manual_seed(seed)) / 10


@pytest.fixture
def corpus(tmp_path):
    """Two utterances in LibriSpeech's layout, and one whose recording is broken."""
    for chapter in (1, 2):
        folder = tmp_path / "corpus" / "test-clean" / "7" / str(chapter)
        folder.mkdir(parents=True)
        save_audio(folder / f"7-{chapter}-0000.flac", noise(0.5 + chapter / 4, chapter), 16000)
    (folder.parent / "1" / "7-1.trans.txt").write_text("7-1-0000 THE SKY IS BLUE\n")
    (folder / "7-2.trans.txt").write_text("7-2-0000 BLUE SKY\n7-2-0001 NOT AUDIO\n")
    (folder / "7-2-0001.flac").write_bytes(b"fLaC but nothing that follows makes sense")
    return tmp_path / "corpus"


def test_asr(run, untrained, corpus, tmp_path):
    ran = run(
        ASR, "hparams/eval.yaml", "../../../egs/mini/hparams/eval_asr.yaml", "--splits", "[test-clean]",
        "--data_folder", corpus, "--checkpoint", untrained, "--output_folder", tmp_path / "out",
        "--decoding.max_steps", "5",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    result = json.loads((tmp_path / "out" / "asr.json").read_text())["splits"]["test-clean"]
    counts = {name: group["utterances"] for name, group in result["groups"].items()}
    assert counts == {"all": 2, "template sentences": 1, "random word strings": 1}
    assert result["skipped"] == {"unreadable": 1}
    assert result["published_wer"] is None
    assert "test-clean, template sentences" in ran.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--normalizer", "german"], "--normalizer german"),
        (["--splits", "[test-cleen]"], "test-cleen"),
        (["--batchsize", "4"], "--batchsize"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, untrained, corpus, tmp_path, flags, message):
    common = ["--data_folder", corpus, "--checkpoint", untrained, "--output_folder", tmp_path / "out"]
    ran = run(ASR, "hparams/eval.yaml", *common, *flags)
    assert ran.returncode == 2
    assert message in ran.stderr and ran.stderr.count("\n") == 1
