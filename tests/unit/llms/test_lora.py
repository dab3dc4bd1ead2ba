"""Test LoRA on a backbone: its parameters, checkpoints and refused options."""

from __future__ import annotations

import sys

import pytest
import torch

from omnikit import checkpoint
from omnikit.hparams import build_part, build_parts, choices
from omnikit.interfaces import count_parameters
from omnikit.model import OmniLM
from omnikit.train.brain import parameter_table
from omnikit.weights import save_weights

RANK = 3
OPTIONS = {"rank": RANK, "targets": ["q_proj", "down_proj"]}
SMALL = {
    "encoder.width": 16, "encoder.heads": 2, "encoder.layers": 1, "encoder.n_ctx": 200, "adapter.hidden": 8,
    "llm.size": "tiny", "llm.tokenizer": "bytes",
}  # fmt: skip


def omni(name: str = "qwen3_0.6b", **options) -> OmniLM:
    torch.manual_seed(0)
    return build_parts({"llm": name}, {**SMALL, **options})["model"].eval()


def some_steps(model: OmniLM) -> torch.Tensor:
    return torch.stack([torch.randint(0, n, (2, 9)) for n in model.layout.sizes], dim=1)


def logits(model: OmniLM, steps: torch.Tensor) -> torch.Tensor:
    return model.text_logits(model(steps).text)


def train(model: OmniLM, trainable: list[str]) -> None:
    model.freeze_all_but(trainable)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        logits(model, some_steps(model)).logsumexp(dim=-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize("name", ["qwen3_0.6b", "gemma_2b", "phi3_mini"])
def test_only_the_updates_train(name):
    model = omni(name, **{"llm.lora": {"rank": RANK}})
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    steps = some_steps(model)
    first = logits(model, steps)
    train(model, ["llm"])
    after = model.state_dict()
    changed = {key for key in before if not after[key].equal(before[key])}
    assert changed == {key for key in before if ".lora_" in key}
    assert not torch.allclose(logits(model, steps), first)
    assert count_parameters(model, trainable_only=True) == sum(before[key].numel() for key in changed)


def test_it_starts_as_no_change_and_at_the_matrices_asked_for():
    plain, model = omni(), omni(**{"llm.lora": OPTIONS})
    plain.load_state_dict({key: tensor for key, tensor in model.state_dict().items() if ".lora_" not in key})
    steps = some_steps(model)
    assert logits(model, steps).equal(logits(plain, steps))
    added = [key for key in model.state_dict() if ".lora_" in key]
    assert len(added) == 2 * 2 * model.llm.config.num_hidden_layers
    assert all(min(model.state_dict()[key].shape) == RANK for key in added)
    assert {key.split(".lora_")[0].rpartition(".")[2] for key in added} == {"q_proj", "down_proj"}


def test_the_table_counts_what_trains():
    model = omni(**{"llm.lora": OPTIONS})
    table = parameter_table(model, ["llm"])
    updates = sum(tensor.numel() for key, tensor in model.state_dict().items() if ".lora_" in key)
    assert f"{updates:,} trainable" in list(table.columns[2].cells)


def test_a_checkpoint_round_trips(tmp_path):
    model = omni(**{"llm.lora": OPTIONS})
    train(model, ["llm"])
    checkpoint.save(model, tmp_path / "stage", dtype=torch.float32)
    loaded, steps = checkpoint.load(tmp_path / "stage"), some_steps(model)
    assert logits(loaded, steps).equal(logits(model, steps))
    other = omni(**{"llm.lora": OPTIONS})
    other.load_state_dict(model.state_dict())  # as SpeechBrain does on resuming
    assert logits(other, steps).equal(logits(model, steps))


def test_a_stage_without_it_goes_on_with_it(tmp_path):
    first = omni()
    train(first, ["llm", "new_text_embeddings"])
    checkpoint.save(first, tmp_path / "stage1", dtype=torch.float32)
    second, steps = omni(**{"llm.lora": OPTIONS}), some_steps(first)
    train(second, ["new_text_embeddings"])
    checkpoint.restore(second, tmp_path / "stage1")
    assert logits(second, steps).equal(logits(first, steps))
    train(second, ["llm"])
    checkpoint.save(second, tmp_path / "stage2")
    with pytest.raises(ValueError, match=r"has the unknown llm.trunk.layers.0.*lora_A"):
        checkpoint.restore(first, tmp_path / "stage2")
    wider = omni(**{"llm.lora": OPTIONS | {"rank": RANK + 1}})
    with pytest.raises(ValueError, match=r"lora_A.*is \[3, .* where \[4, .*is needed"):
        checkpoint.restore(wider, tmp_path / "stage2")


def test_a_file_that_lacks_a_part_of_it_is_refused(tmp_path):
    options = {"size": "tiny", "tokenizer": "bytes", "lora": OPTIONS}
    less = build_part("llm", "qwen3_0.6b", **options | {"lora": {"targets": ["q_proj"], "rank": RANK}})
    save_weights(less, tmp_path)
    with pytest.raises(ValueError, match=r"lacks trunk.layers.0.mlp.down_proj.lora_A"):
        build_part("llm", "qwen3_0.6b", **options, weights=str(tmp_path)).load_weights()


def test_published_weights_are_its_base(tmp_path):
    from transformers import AutoModelForCausalLM

    options = {"size": "tiny", "tokenizer": "bytes", "weights": str(tmp_path)}
    theirs = AutoModelForCausalLM.from_config(build_part("llm", "qwen3_0.6b", **options).config).eval()
    theirs.save_pretrained(tmp_path)
    model = build_part("llm", "qwen3_0.6b", **options, lora={}).eval()
    model.load_weights()
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        ours = model.head(model.final_norm(model(model.embed(ids), ids)))
        torch.testing.assert_close(ours, theirs(ids).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", choices("llm"))
def test_every_backbone_takes_it(name):
    with torch.device("meta"):
        plain = build_part("llm", name, size="tiny", tokenizer="bytes")
        model = build_part("llm", name, size="tiny", tokenizer="bytes", lora={})
    updates = [p for key, p in model.named_parameters() if ".lora_" in key]
    assert count_parameters(model, trainable_only=True) == sum(p.numel() for p in updates) > 0
    assert set(plain.state_dict()) == {key for key in model.state_dict() if ".lora_" not in key}


def test_bad_options(monkeypatch):
    def build(**lora):
        return build_part("llm", "llama", size="tiny", tokenizer="bytes", lora=lora)

    with pytest.raises(ValueError, match=r"--llm.lora.rnk: no such option; did you mean rank\?"):
        build(rnk=3)
    with pytest.raises(ValueError, match=r"--llm.lora.targets q_prj: no such layer; did you mean q_proj\?"):
        build(targets="q_prj")
    with pytest.raises(ValueError, match=r"--llm.lora.rank 0: must be a whole number from 1"):
        build(rank=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"needs the Python package peft: pip install omnikit\[lora\]"):
        build()
