"""Fixtures of all unit tests: an untrained system of real parts at a tiny size, and its checkpoint."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch

from omnikit import checkpoint, cli
from omnikit.generate import Decoding
from omnikit.hparams import build_parts
from omnikit.model import OmniLM

SMALL = {
    "encoder.width": 16, "encoder.heads": 2, "encoder.layers": 1, "encoder.n_ctx": 200, "adapter.hidden": 8,
    "llm.config.hidden_size": 16, "llm.config.intermediate_size": 16, "llm.config.num_hidden_layers": 1,
    "llm.config.num_attention_heads": 2, "llm.config.num_key_value_heads": 1,
}  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> str:
    """Return the path of a sentencepiece tokenizer file whose vocabulary has the letters of six words."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = folder / "text.txt"
    text.write_text("one two three\nfour five six\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=24, model_type="char", minloglevel=2
    )
    return str(folder / "tokenizer.model")


@pytest.fixture(scope="session")
def tiny(tokenizer):
    """Return a function that builds a tiny untrained system: `tiny({"codec": "snac_mini"}, {"adapter.hidden": 3})`.

    The arguments are names of parts and options that replace those of the system.
    """

    def build(names: dict[str, str] | None = None, options: dict | None = None) -> OmniLM:
        torch.manual_seed(0)
        return build_parts(names, {**SMALL, "llm.tokenizer": tokenizer, **(options or {})})["model"].eval()

    return build


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory) -> Path:
    """Return the folder of a checkpoint of the tiny system, which tests must not change."""
    folder = tmp_path_factory.mktemp("saved") / "stage"
    checkpoint.save(tiny(), folder)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs the command line `omnikit` in this process: `run("ask", file)`.

    It returns the exit status, stdout, and stderr without the progress bar.
    """
    # an untrained model seldom ends by itself
    monkeypatch.setattr("omnikit.api.Decoding", functools.partial(Decoding, max_steps=24))

    def call(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["omnikit", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err.rpartition("\r")[2]

    return call
