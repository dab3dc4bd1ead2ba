"""Gradients of one optimiser step, computed from hand-made micro-batches in one process or in two that train together.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.epoch_loop import EpochCounter
from torch import Tensor

from omnikit.data.collate import Batch, collate
from omnikit.data.micro_batch import MicroBatch
from omnikit.losses import LABELS, TASKS
from omnikit.model import OmniLM
from omnikit.tasks import TASK_NAMES, Sample, make_sample
from omnikit.tasks import TASKS as ALL
from omnikit.tokens import IGNORE
from omnikit.torchrun import Share
from tests.unit.faulty_runs import Quiet, loader
from tests.unit.qa_brain import QABrain
from tests.unit.toy import toy_model

PARTS = ("adapter", "llm", "tts_adapter", "new_text_embeddings", "new_audio_embeddings")
SHARES = {"A1T1": 0.5, "T1T2": 0.2, "T1A1": 0.2, "A1A2": 0.1}
DIVISIONS = {
    "whole": [[[0, 1, 2, 3, 4, 5]]],
    "accumulated": [[[0, 5], [1, 2], [3, 4]]],
    "shared": [[[0, 1, 2]], [[3, 4, 5]]],
    "both": [[[2], [4, 0], [1]], [[5], [3]]],
    "text at last": [[[2], [0]], [[5], [1]]],
    "nothing at last": [[[2], [0]], [[5], [3]]],
}
"""Divisions of the samples of an optimiser step: samples of each micro-batch of each process.

Samples 2 to 5 have audio labels, samples 0, 1 and 5 have text labels. In "text at last" no process has audio labels in
its last micro-batch. In "nothing at last" the TTS adapter alone is trained, and the last micro-batch of one process has
no labels that train it.
"""

SHARED = [name for name, division in DIVISIONS.items() if len(division) == 2]


class RecordingBrain(QABrain):
    """A Brain that records the gradients of its optimiser steps and the weights of the labels."""

    def optimizers_step(self) -> None:
        self.gradients = {n: None if p.grad is None else p.grad.clone() for n, p in self.model.named_parameters()}
        super().optimizers_step()


def material(model: OmniLM) -> tuple[list[Sample], list[Tensor | None]]:
    """Return six samples of four tasks and unequal lengths, with their features."""
    draw, encode = torch.Generator().manual_seed(0), model.llm.tokenizer.encode
    made, features = [], []
    for i, (task, answer) in enumerate(
        [("A1T1", "the cat"), ("T1T2", "yes"), ("T1A1", "no"), ("T1A1", "a dog"), ("T1A1", "red"),
         ("A1A2", "the dog sees a cat")]
    ):  # fmt: skip
        codes = torch.randint(0, model.codec.codebook_size, (model.codec.num_codebooks, 2 + i), generator=draw)
        speech = torch.randn(6, model.encoder.dim, generator=draw) if ALL[task].given == "speech" else None
        given = {"question": encode("what is")} if speech is None else {"audio_frames": model.num_speech_positions(6)}
        options = {"codes": codes} if ALL[task].speaks else {}
        made.append(make_sample(ALL[task], model.layout, model.pattern, answer=encode(answer), **given, **options))
        features.append(speech)
    return made, features


def micro_batches(model: OmniLM, division: list[list[list[int]]], rank: int, packed: bool = False) -> list[Batch]:
    """Return the micro-batches of one process, which know the labels of the whole optimiser step."""
    made, features = material(model)
    counts = np.zeros((len(TASK_NAMES), 2), dtype=np.int64)
    for index in [i for process in division for batch in process for i in batch]:
        known = (made[index].labels != IGNORE).sum(dim=1)
        counts[made[index].task] += [int(known[0]), int(known[1])]
    batches = []
    for number, indices in enumerate(division[rank]):
        step = MicroBatch(indices, counts, number == len(division[rank]) - 1, packed)
        each = [made[i] for i in indices], [features[i] for i in indices]
        batches.append(collate(*each, model.layout, model.encoder.dim, ids=[str(i) for i in indices], step=step))
    return batches


def brain_of(folder: Path, normalization: str = LABELS, trainable: Sequence[str] = PARTS) -> RecordingBrain:
    model = toy_model(tts_blocks=1)
    model.freeze_all_but(list(trainable))
    options = {
        "stream_weights": {"text": 2.0, "audio": 1.0}, "loss_normalization": normalization, "tasks": SHARES,
        "log_steps": None, "validate_first": False, "peak_lr": 1e-3, "min_lr": 1e-3, "warmup_steps": 1,
        "epochs": EpochCounter(1),
        "steps_per_epoch": 1, "output_folder": str(folder), "stage": "toy", "part_names": {}, "loggers": Quiet(),
        "distributed": "ddp", "hang_timeout": 10.0, "compile_blocks": False, "sampler": Quiet(), "validate": Quiet(),
    }  # fmt: skip
    run_opts = {"device": "cpu", "distributed_backend": "gloo", "max_grad_norm": 0.0}
    return RecordingBrain({"model": model}, torch.optim.AdamW, options, run_opts)


def gradients(
    folder: Path, name: str, normalization: str, division: list[list[list[int]]] | None = None
) -> dict[str, Tensor | None]:
    """Train one optimiser step as the process that this is, and return the gradients by name.

    Args:
        name: name of a division of the samples.
        normalization: that of the loss.
        division: division to train on in place of that of this name.
    """
    brain = brain_of(folder, normalization, ["tts_adapter"] if name == "nothing at last" else PARTS)
    batches = micro_batches(brain.model, division or DIVISIONS[name], Share.of_torchrun().rank)
    brain.fit(brain.hparams.epochs, loader(batches), progressbar=False)
    assert brain.optimizer_step == brain.progress.steps == 1
    return {name: None if grad is None else grad.detach() for name, grad in brain.gradients.items()}


def run_share(folder: Path, begun: Connection, environment: dict[str, str]) -> None:
    """Write the gradients of each division of the step to files in a folder, as one of two processes.

    `environment` has torchrun's variables with rank and number of processes. Called by `rewriting.run_by_two`.
    """
    os.environ.update(environment)
    torch.set_num_threads(1)
    begun.send(None)
    sb.utils.distributed.ddp_init_group({"distributed_backend": "gloo"})
    for name in SHARED:
        for normalization in (LABELS, TASKS):
            found = gradients(folder, name, normalization)
            torch.save(found, folder / f"{name}.{normalization}.{Share.of_torchrun().rank}.pt")
    torch.distributed.destroy_process_group()
