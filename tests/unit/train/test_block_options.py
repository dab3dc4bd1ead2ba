"""Test that compiled and checkpointed blocks compute what plain blocks compute, with few graphs and less memory."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch._dynamo.utils import counters

from omnikit.llms.transformers_lm import TransformersLM
from omnikit.model import OmniLM
from omnikit.train import precision
from omnikit.train.activation_checkpointing import checkpoint_activations
from omnikit.train.block_options import set_up_blocks
from omnikit.train.compile_blocks import compile_blocks, whether_to_compile
from omnikit.train.transformer_blocks import transformer_blocks
from tests.unit.toy import tokenizer_file, toy_model

NEW = ["adapter", "tts_adapter", "new_text_embeddings", "new_audio_embeddings"]
STAGES = {"stage 1": NEW, "stage 3": ["llm", *NEW]}


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    counters.clear()


def model_of(stage: str = "stage 3", lora: bool = False) -> OmniLM:
    model = toy_model(tts_blocks=1)
    if lora:
        torch.manual_seed(0)
        config = {**model.llm.config.to_dict(), "vocab_size": None}
        model.llm = TransformersLM(
            config={k: v for k, v in config.items() if v is not None}, tokenizer=tokenizer_file(), lora={"rank": 2}
        )
        for name, parameter in model.llm.named_parameters():
            if "lora" in name:  # its second matrix is 0 at first
                torch.nn.init.normal_(parameter, std=0.1)
    model.freeze_all_but(STAGES[stage])
    return model


def step(model: OmniLM, rows: int = 3, length: int = 24) -> list[torch.Tensor]:
    """Return hidden states and gradients of a training step on random embeddings."""
    model.zero_grad()
    torch.manual_seed(1)
    embeddings = torch.randn(rows, length, model.llm.dim, requires_grad=True)
    hidden = model.hidden(embeddings)
    (hidden.text.square().sum() + hidden.audio.square().sum()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [hidden.text.detach(), hidden.audio.detach(), embeddings.grad, *gradients]


def close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    assert len(found) == len(expected) > 5
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("stage", "lora", "backend", "checkpointed"),
    [
        ("stage 1", False, "eager", False),
        ("stage 3", True, "eager", True),
        pytest.param("stage 1", True, "aot_eager", False, marks=pytest.mark.long),
        pytest.param("stage 1", True, "aot_eager", True, marks=pytest.mark.long),
        pytest.param("stage 3", False, "inductor", False, marks=pytest.mark.long),
        pytest.param("stage 3", False, "inductor", True, marks=pytest.mark.long),
    ],
)
def test_compiled_and_checkpointed_blocks_compute_the_same(stage, lora, backend, checkpointed):
    model = model_of(stage, lora)
    names, expected = list(model.state_dict()), step(model)
    compile_blocks(model, backend=backend)
    if checkpointed:
        checkpoint_activations(model)
    assert close(step(model), expected)
    assert counters["stats"]["unique_graphs"] > 0
    assert list(model.state_dict()) == names


def test_checkpointed_blocks_alone_compute_the_same():
    model = model_of()
    expected = step(model)
    checkpoint_activations(model)
    assert all(torch.equal(a, b) for a, b in zip(step(model), expected, strict=True))


def test_few_graphs_serve_batches_of_all_shapes():
    model = model_of()
    compile_blocks(model, backend="eager")
    shapes = [(rows, length) for rows in range(1, 9) for length in range(24, 120, 8)]
    for stage in STAGES:
        model.freeze_all_but(STAGES[stage])
        for rows, length in shapes[::5]:
            step(model, rows, length)
    assert len(shapes[::5]) > 15
    assert counters["stats"]["unique_graphs"] <= 6  # trainable or frozen, one sequence or several


def test_generation_and_validation_use_plain_blocks():
    model = model_of()
    compile_blocks(model, backend="eager")
    checkpoint_activations(model)
    cache = model.new_cache()
    with torch.no_grad():
        for steps in (5, 1, 1):
            model.hidden(torch.randn(2, steps, model.llm.dim), cache=cache)
    assert counters["stats"]["unique_graphs"] == 0


def test_a_copy_of_a_model_has_its_own_blocks():
    model = model_of()
    checkpoint_activations(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert step(twin)[0].abs().sum() > 0


def saved_bytes(model: OmniLM) -> int:
    """Return the bytes that a forward pass stores for the backward pass, weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    stored: dict[int, int] = {}
    kept = []  # a storage that is freed could give its address to another one

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        if tensor.untyped_storage().data_ptr() not in weights:
            stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.hidden(torch.randn(4, 64, model.llm.dim, requires_grad=True))
    return sum(stored.values())


def test_checkpointed_blocks_store_their_inputs_only():
    plain, checkpointed = model_of(), model_of()
    checkpoint_activations(checkpointed)
    inputs = len(transformer_blocks(plain)) * 4 * 64 * plain.llm.dim * 4
    assert saved_bytes(checkpointed) < saved_bytes(plain) / 5
    assert saved_bytes(checkpointed) < 4 * inputs  # norms and rotary tables included


def options(**chosen) -> dict:
    return {"compile_blocks": False, "activation_checkpointing": False, **chosen}


def test_a_recipe_sets_up_blocks_and_logs_it(caplog):
    model = model_of()
    with caplog.at_level(logging.INFO):
        set_up_blocks(model, options(compile_blocks=None, activation_checkpointing=True))
    assert "3 transformer blocks: not compiled (automatic: only on a GPU), activations recomputed" in caplog.text
    assert close(step(model), step(model_of()))


def test_a_backbone_without_a_list_of_blocks_is_refused():
    model = model_of()
    model.llm.trunk.layers = torch.nn.Sequential(*model.llm.trunk.layers)
    model.tts_adapter = None
    for option in ("compile_blocks", "activation_checkpointing"):
        with pytest.raises(ValueError, match=f"--{option} true: TransformersLM has no list of blocks"):
            set_up_blocks(model, options(**{option: True}))


def test_the_automatic_choice_compiles_on_a_gpu_that_torch_can_compile_for(monkeypatch):
    gpu, compile_module = torch.device("cuda"), "omnikit.train.compile_blocks"
    monkeypatch.setattr(f"{compile_module}.importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(f"{compile_module}.shutil.which", lambda name: "/usr/bin/" + name)
    assert whether_to_compile(None, gpu) == (True, "automatic")
    assert whether_to_compile(None, torch.device("cpu"))[0] is False
    assert whether_to_compile(True, torch.device("cpu"))[0] is True
    assert whether_to_compile(False, gpu)[0] is False
    monkeypatch.setattr(f"{compile_module}.shutil.which", lambda name: None)
    assert whether_to_compile(None, gpu) == (False, "automatic: no C compiler is installed (gcc, cc, clang)")
    monkeypatch.setattr(f"{compile_module}.importlib.util.find_spec", lambda name: None)
    assert "triton" in whether_to_compile(None, gpu)[1]


@pytest.mark.parametrize(
    ("on_gpu", "given", "fast", "expected"),
    [
        (False, None, True, "fp32"),
        (True, None, True, "bf16"),
        (True, None, False, "fp32"),
        (True, "fp16", True, "fp16"),
    ],
)
def test_products_are_bfloat16_on_a_gpu(monkeypatch, on_gpu, given, fast, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast)
    chosen = precision.precisions(on_gpu, given)
    assert chosen == {"precision": expected, "eval_precision": expected}
