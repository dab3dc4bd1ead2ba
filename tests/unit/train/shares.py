"""Checks of trainings by two processes, which the processes run; one that fails ends them.

They compare gradients of copies and of shards of a toy system with those of one process, train with both, resume, and
leave checkpoints and figures in a folder for `test_distributed.py`.
"""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy

from omnikit.data.collate import Batch
from omnikit.generate import Question
from omnikit.linear_cross_entropy import Head, linear_cross_entropy
from omnikit.model import OmniLM
from omnikit.tasks import TASKS
from omnikit.torchrun import Share
from omnikit.train.activation_checkpointing import checkpoint_activations
from omnikit.train.brain import OneForward
from omnikit.train.compile_blocks import compile_blocks
from omnikit.train.distributed import Alone, make_parallel, own_share
from omnikit.train.process_group import end_processes, start_processes
from omnikit.train.stored_state import whole_weights
from omnikit.train.validation import Validation
from tests.unit.faulty_runs import FEWER, FaultyBrain, batches, brain_of, loader
from tests.unit.toy import WORDS, toy_model

TRAINED = ["adapter", "llm", "tts_adapter", "new_text_embeddings", "new_audio_embeddings"]
RATE, LIMIT, STEPS = 1e-2, 1.0, 2
GRADIENTS = (
    ("ddp", 1, True, False), ("fsdp", 1, True, False), ("ddp", 3, True, False), ("fsdp", 3, True, False),
    ("ddp", 1, False, False), ("fsdp", 1, False, False),
)  # fmt: skip
"""Cases whose gradients are compared: kind, micro-batches of a process, whether the first process has audio labels,
and whether blocks are compiled and their activations recomputed."""
COMPILED = (("ddp", 3, True, True), ("fsdp", 3, True, True))
"""Cases that take long."""
RUNS: dict[str, dict[str, Any]] = {"fsdp": {"distributed": "fsdp"}}
"""Options of the short trainings by name."""
LORA: dict[str, dict[str, Any]] = {
    "lora-fsdp": {"distributed": "fsdp", "lora": True},
    "lora-ddp": {"distributed": "ddp", "lora": True},
}
"""Options of further trainings, which together take long."""


def example(accumulated: int, audio: bool) -> tuple[Tensor, Tensor]:
    """Return steps and labels [2 * accumulated, S, L]; the last process's have no audio labels."""
    rng = torch.Generator().manual_seed(0)
    steps, labels = (torch.randint(0, 5, (2 * accumulated, 4, 8), generator=rng) for _ in range(2))
    labels[accumulated if audio else 0 :, 1:] = -100
    return steps, labels


def total(model: OmniLM, steps: Tensor, labels: Tensor) -> Tensor:
    """Return the summed losses: of the text in chunks, which read the heads' weights, of the audio from its logits."""
    hidden = model(steps)
    heads = [Head(model.llm.lm_head.weight), Head(model.new_text_embeddings.head.weight)]
    places, sizes = torch.arange(labels[:, 0].numel()), model.layout.sizes
    loss = linear_cross_entropy(
        hidden.text.flatten(0, 1), heads, places, labels[:, :1].reshape(-1, 1), weights=torch.ones(1), sizes=sizes[:1]
    ).total
    if (labels[:, 1:] != -100).any():
        for number, logits in enumerate(model.audio_logits(hidden.audio), 1):
            loss = loss + cross_entropy(logits.flatten(0, 1), labels[:, number].flatten(), reduction="sum")
    return loss


def check_gradients(kind: str, accumulated: int, audio: bool, compiled: bool) -> None:
    """Compare gradients and norms of some optimiser steps by two processes with those by one."""
    alone, model = toy_model(tts_blocks=1), toy_model(tts_blocks=1)
    for each in (alone, model):
        each.freeze_all_but(TRAINED)
    counters.clear()
    if compiled:
        compile_blocks(model, backend="aot_eager")
        checkpoint_activations(model)
    parallel = make_parallel(kind, 1.0)
    ways: list[tuple[OmniLM, nn.Module, Alone]] = [
        (alone, OneForward(alone), Alone()), (model, parallel.wrap(OneForward(model), model), parallel),
    ]  # fmt: skip
    weights = [[p for p in each.parameters() if p.requires_grad] for each, _, _ in ways]
    optimizers = [torch.optim.AdamW(each, lr=RATE, fused=True) for each in weights]
    steps, labels = example(accumulated, audio)
    first = Share.of_torchrun().rank * accumulated
    for _ in range(STEPS):
        norms = []
        for number, (each, module, way) in enumerate(ways):
            for part in range(first, first + accumulated) if number else range(2 * accumulated):
                loss = module(total, each, steps[part : part + 1], labels[part : part + 1])
                (loss * (2 if number else 1)).backward()  # several processes average
            norms.append(float(way.clip(weights[number], LIMIT)))
        assert abs(norms[0] - norms[1]) < 1e-3 * norms[0], (kind, norms)
        for (name, whole), (_, own) in zip(alone.named_parameters(), model.named_parameters(), strict=True):
            if whole.requires_grad:
                compare(f"{kind} {accumulated} {audio} {name}", whole.grad, own.grad)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert not compiled or 0 < counters["stats"]["unique_graphs"] <= 4, counters["stats"]


def compare(name: str, whole: Tensor | None, own: Tensor | None) -> None:
    assert (whole is None) == (own is None), f"{name}: {whole is None} {own is None}"
    if whole is not None:
        difference = float((whole - full(own)).abs().max())
        assert difference < 1e-5, f"{name}: {difference}"


def full(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def state_of(brain: FaultyBrain) -> dict[str, Tensor]:
    """Return the weights and the optimiser's state of a brain, gathered from all processes."""
    states = brain.optimizer.state_dict()["state"]
    moments = {f"{n} {key}": full(value) for n, state in states.items() for key, value in state.items()}
    return {**whole_weights(brain.model), **moments}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def valid_batches(model: OmniLM) -> list[Batch]:
    with mock.patch.object(Share, "of_torchrun", return_value=Share(0, 2)):  # the same in all processes
        return batches(model, "valid")[:3]


@mock.patch("omnikit.train.brain.draw_curves")
def train(folder: Path, epochs: int, _: mock.Mock, number: int | None = None, **options: Any) -> FaultyBrain:
    """Train a toy system, or resume it, with `number` batches in each epoch; None = as many as there are."""
    folder.mkdir(parents=True, exist_ok=True)
    brain = brain_of(folder, epochs, **options)
    valid = loader(own_share(valid_batches(brain.model)))
    brain.fit(brain.hparams.epochs, loader(batches(brain.model, "train")[:number]), valid, progressbar=False)
    return brain


def check_training(folder: Path, options: dict[str, Any]) -> None:
    """Train, resume, and store what one process has to find in the checkpoint."""
    before = state_of(train(folder, 1, **options))
    assert same(before, state_of(train(folder, 1, **options)))  # the epoch is done, so this only resumes
    if Share.of_torchrun().rank == 0:
        torch.save(before, folder / "state.pt")


def check_bad_step(folder: Path) -> None:
    """Check that copies and shards skip a step with a non-finite gradient in one process, on the device as a GPU does.
    """
    ends = []
    for kind in ("ddp", "fsdp"):
        brain = train(folder / f"bad-{kind}", 2, fault="gradient", fused=True, distributed=kind)
        assert brain.optimizer_step == 2 * FEWER and brain.progress.skipped == 1
        state = state_of(brain)
        assert all(value.isfinite().all() for value in state.values())
        assert {float(value) for name, value in state.items() if name.endswith(" step")} == {2.0 * FEWER - 1}
        ends.append(state)
    assert all(torch.allclose(value, ends[0][name], atol=1e-5) for name, value in ends[1].items())


def check_error_rates() -> None:
    """Compare the error rates of answers that the processes decode together with those that each decodes alone."""
    made, model = Validation.__new__(Validation), toy_model()
    rng = torch.Generator().manual_seed(0)
    questions = [Question(features=torch.randn(6, model.encoder.dim, generator=rng)) for _ in WORDS]
    made.material = [(TASKS["A1T1"], questions, [(word, "en") for word in WORDS])]
    brain = mock.Mock(model=model)
    together = made(brain)
    with mock.patch.multiple("omnikit.train.validation", own_share=list, gather_shares=list):
        assert together == made(brain) and together["wer"] > 0


def run_share(folder: Path, begun: Connection, environment: dict[str, str]) -> None:
    """Run all checks but those of compiled blocks and LoRA as one of two processes.

    `environment` has torchrun's variables with rank and number of processes. Called by `rewriting.run_by_two`.
    """
    join(begun, environment)
    for case in GRADIENTS:
        check_gradients(*case)
    check_error_rates()
    check_bad_step(folder)
    for name, options in RUNS.items():
        check_training(folder / name, options)
    state = state_of(train(folder / "alone", 1, distributed="fsdp"))  # stored by one process
    if Share.of_torchrun().rank == 0:
        assert same(state, torch.load(folder / "alone" / "state.pt", weights_only=True))
    end_processes()


def run_long(folder: Path, begun: Connection, environment: dict[str, str]) -> None:
    """Compare the gradients of compiled blocks and train with LoRA, as one of two processes; see `run_share`."""
    join(begun, environment)
    for case in COMPILED:
        check_gradients(*case)
    for name, options in LORA.items():
        check_training(folder / name, options)
    end_processes()


def join(begun: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    begun.send(None)
    start_processes("gloo", 1.0)
