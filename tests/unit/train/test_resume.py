"""Tests that a training run resumes only from its own checkpoints and reports changed settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omnikit.hparams import load_recipe
from omnikit.llms.tokenizers import ByteTokenizer, vocabulary_of
from omnikit.torchrun import Share
from omnikit.train.checkpointer import WholeCheckpointer
from omnikit.train.resume import RunIdentity, resumes
from omnikit.train.run import fixed_facts

ROOT = Path(__file__).parents[3]
STAGE1 = ROOT / "recipes/VoiceAssistant/QA/hparams/stage1.yaml"
SMALL = (
    "--encoder.width 16 --encoder.heads 2 --encoder.layers 1 --adapter.hidden 16 --model.tts_blocks 1 "
    "--llm.config.hidden_size 16 --llm.config.intermediate_size 16 --llm.config.num_hidden_layers 1 "
    "--llm.config.num_attention_heads 2 --llm.config.num_key_value_heads 1"
)


def resumed(folder: Path, flags: str = "") -> list[str]:
    """Return the changed settings that a run reports for the checkpoints in a folder, then save a checkpoint there."""
    words = [str(STAGE1), str(ROOT / "egs/mini/hparams/system.yaml"), "--data_folder", "somewhere"]
    recipe = load_recipe([*words, "--output_folder", str(folder), *SMALL.split(), *flags.split()])
    checkpointer = WholeCheckpointer(folder / "save", {"weights": torch.nn.Linear(1, 1)})
    changes = resumes(checkpointer, RunIdentity(recipe, fixed_facts(recipe.hparams)))
    checkpointer.save_checkpoint()
    return changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert resumed(folder) == []
    return folder


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--pattern parallel", "pattern is delayed, omnikit.patterns.Delayed there and parallel, "),
        ("--pattern flattened", "pattern is delayed, omnikit.patterns.Delayed there and flattened, "),
        ("--pattern.text_lead 2", "pattern is text_lead 0 there and text_lead 2 here"),
        ("--codec snac_mini", "codec is mel_rvq, "),
        ("--adapter mlp", "adapter is mini, "),
        ("--encoder.layers 2", "encoder is layers 1 there and layers 2 here"),
        ("--llm.config.hidden_size 32", "llm is config.hidden_size 16 there and config.hidden_size 32 here"),
        ("--llm.lora.rank 4", "llm is "),
        ("--model.tts_blocks 2", "model is tts_blocks 1 there and tts_blocks 2 here"),
        ("--llm.tokenizer bytes", "vocabulary is "),
        ("--tasks.A1T2 1.0", "tasks is ['A1T1', 'T1A1'] there and ['A1T1', 'A1T2', 'T1A1'] here"),
        (
            "--trainable [adapter]",
            "trainable is ['adapter', 'new_audio_embeddings', 'new_text_embeddings', 'tts_adapter'] there and ['ad",
        ),
        ("--stage stage2", "stage is stage1 there and stage2 here"),
    ],
)
def test_another_run_is_refused_by_name(folder, flags, words):
    with pytest.raises(ValueError) as caught:
        resumed(folder, flags)
    message = str(caught.value)
    assert message.startswith(f"--output_folder {folder}: holds checkpoints of another run (") and words in message
    assert "\n" not in message and message.endswith("choose another folder, or delete it to begin anew")


def test_what_may_change_is_told(tmp_path):
    assert resumed(tmp_path) == []
    flags = "--peak_lr 1e-3 --max_batch_length 500 --precision bf16 --epochs.limit 3 --tasks.A1T1 2.0"
    changes = resumed(tmp_path, flags)
    names = {change.partition(" was ")[0] for change in changes}
    assert names >= {"peak_lr", "max_batch_length", "precision", "epochs.limit", "tasks.A1T1"}
    assert "peak_lr was 0.0004, is 0.001 from here on" in changes and "precision was None, is bf16" in str(changes)
    assert resumed(tmp_path, flags) == []


def test_number_of_processes_may_change(tmp_path, monkeypatch):
    assert resumed(tmp_path) == []
    monkeypatch.setattr("omnikit.train.resume.Share.of_torchrun", lambda: Share(0, 2))
    assert resumed(tmp_path) == ["processes was 1, is 2 from here on"]


def test_a_checkpoint_from_before_is_resumed_and_told(tmp_path):
    WholeCheckpointer(tmp_path / "save", {"weights": torch.nn.Linear(1, 1)}).save_checkpoint()
    (change,) = resumed(tmp_path, "--pattern parallel")
    assert "does not say what it was trained with; it is resumed unchecked" in change


def test_vocabularies_of_one_size_differ_by_what_their_ids_mean():
    class Other(ByteTokenizer):
        def decode(self, ids: list[int]) -> str:
            return super().decode(ids).upper()

    assert vocabulary_of(ByteTokenizer()) == vocabulary_of(ByteTokenizer()) != vocabulary_of(Other())
    assert vocabulary_of(ByteTokenizer()).startswith("256 ids, ")
