"""Short training runs of a toy system with an injected fault, in one process or in two that train together.

Faults of data and of gradients occur in the last process alone.
"""

from __future__ import annotations

import io
import json
import logging
import os
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import speechbrain as sb
import torch
from speechbrain.utils.epoch_loop import EpochCounter
from torch.utils.data import DataLoader

from omnikit.data.collate import Batch, collate
from omnikit.errors import Stopped
from omnikit.llms.lora import add_lora
from omnikit.model import OmniLM
from omnikit.tasks import TASKS, make_sample
from omnikit.torchrun import Share
from omnikit.train.brain import OmniBrain
from omnikit.train.checkpointer import WholeCheckpointer
from tests.unit.qa_brain import QABrain
from tests.unit.toy import toy_model

BATCHES, FEWER = 12, 6
"""Numbers of optimiser steps per epoch of the faulty training runs, in one process and in several.

The first is larger than the number of steps that may be skipped in a row.
"""
PATIENCE = 4  # optimiser steps that may be skipped in a row, where an epoch has `FEWER`
POISONED = 4
"""Number of the optimiser step in the second epoch at which the training's fault occurs."""
FAULTS = ("none", "sample", "weight", "rate", "gradient")


class Quiet:
    """A stand-in for a training's sampler, loggers and validation that does nothing."""

    def set_epoch(self, epoch: int, taken: int = 0) -> None: ...

    def log_stats(self, *figures: Any) -> None: ...

    def __call__(self, brain: OmniBrain) -> dict[str, float]:
        return {}


class FaultyBrain(QABrain):
    """A SpeechBrain Brain of a toy training in whose second epoch a fault occurs, one of `FAULTS`."""

    fault = "none"

    def on_fit_batch_start(self, batch: Batch, should_step: bool) -> None:
        super().on_fit_batch_start(batch, should_step)
        here = self.hparams.epochs.current == 2 and self.step == POISONED
        if self.fault == "weight" and here:
            next(self.model.adapter.parameters()).data[0] = torch.nan
        if self.fault == "rate" and self.hparams.epochs.current == 2:
            self.optimizer.param_groups[0]["lr"] = 1e6
        self.spoils = self.fault == "gradient" and here and is_last()

    def check_loss_isfinite(self, loss: torch.Tensor) -> None:
        super().check_loss_isfinite(loss)
        if self.spoils:
            loss.register_hook(lambda gradient: gradient * torch.inf)


def steps_of(processes: int) -> int:
    """Return the number of optimiser steps per epoch when the toy system is trained by a number of processes."""
    return BATCHES if processes == 1 else FEWER


def is_last() -> bool:
    share = Share.of_torchrun()
    return share.rank == share.processes - 1


def batches(model: OmniLM, epoch: str, poisoned: bool = False) -> list[Batch]:
    """Return the batches of one training epoch, each of two samples; every process has other batches."""
    rng = torch.Generator().manual_seed(Share.of_torchrun().rank)
    made = []
    for number in range(steps_of(Share.of_torchrun().processes)):
        features = [torch.randn(6, model.encoder.dim, generator=rng) for _ in range(2)]
        if poisoned and number == POISONED - 1:
            features[1][2, 3] = torch.nan
        text = model.llm.tokenizer.encode("the cat sees a dog")
        codes = torch.randint(0, model.codec.codebook_size, (model.codec.num_codebooks, 2), generator=rng)
        sample = make_sample(
            TASKS["A1A2"],
            model.layout,
            model.pattern,
            audio_frames=model.num_speech_positions(6),
            answer=text,
            codes=codes,
        )
        ids = [f"{epoch}-{number}-{row}-rank{Share.of_torchrun().rank}" for row in range(2)]
        made.append(collate([sample, sample], features, model.layout, model.encoder.dim, ids=ids))
    return made


def loader(found: list[Batch]) -> DataLoader:
    return DataLoader(found, batch_size=None, collate_fn=None)


def brain_of(
    folder: Path,
    epochs: int,
    fault: str = "none",
    distributed: str = "ddp",
    lora: bool = False,
    fused: bool = False,
    **run_opts: Any,
) -> FaultyBrain:
    model = toy_model(tts_blocks=1)
    if lora:
        model.llm.lora = {"rank": 2}
        add_lora(model.llm.trunk, model.llm.lora)
    model.freeze_all_but(["adapter", "llm", "tts_adapter", "new_text_embeddings", "new_audio_embeddings"])
    counter = EpochCounter(epochs)
    hparams = {
        "stream_weights": {"text": 1.0, "audio": 1.0}, "loss_normalization": "labels", "tasks": {"A1A2": 1.0},
        "log_steps": None, "validate_first": False, "peak_lr": 1e-3, "min_lr": 1e-3, "warmup_steps": 1,
        "epochs": counter, "steps_per_epoch": steps_of(Share.of_torchrun().processes), "output_folder": str(folder),
        "stage": "toy", "part_names": {}, "loggers": Quiet(), "sampler": Quiet(), "validate": Quiet(),
        "distributed": distributed, "hang_timeout": 10.0, "compile_blocks": False,
    }  # fmt: skip
    options = {"device": "cpu", "distributed_backend": "gloo", **run_opts}
    brain = FaultyBrain(
        {"model": model}, partial(torch.optim.AdamW, fused=fused), hparams, options,
        WholeCheckpointer(folder / "save", {"model": model, "epochs": counter}),
    )  # fmt: skip
    brain.fault = fault
    return brain


@mock.patch("omnikit.train.brain.draw_curves")  # takes longer than these runs, which do not test it
def run(folder: Path, fault: str, _: mock.Mock, epochs: int = 2, **run_opts: Any) -> dict[str, Any]:
    """Train a toy system with a fault, and return how the run ended, its log, and the sums of its weight tensors.

    The sums are those after the first epoch, at the end, and in the last checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger("omnikit").addHandler(handler)
    stopped, first = "", None
    try:
        for upto in range(1, epochs + 1):  # the first epoch ends before the fault occurs
            brain = brain_of(folder, upto, fault, **run_opts)
            train = batches(brain.model, f"epoch{upto}", fault == "sample" and upto == 2 and is_last())
            valid = loader(batches(brain.model, "valid")[:2])
            brain.fit(brain.hparams.epochs, loader(train), valid, progressbar=False)
            first = first or weights_of(brain.model)
    except Stopped as error:
        stopped = str(error)
    finally:
        logging.getLogger("omnikit").removeHandler(handler)
    found = sorted((folder / "save").glob("CKPT*/model.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    stored = toy_model(tts_blocks=1)
    stored.load_state_dict(torch.load(found[-1], weights_only=True), strict=False)  # frozen parts are not stored
    log = folder / "train_log.jsonl"
    return {
        "stopped": stopped, "text": text.getvalue(), "first": first, "end": weights_of(brain.model),
        "stored": weights_of(stored), "log": [json.loads(line) for line in log.read_text().splitlines()],
    }  # fmt: skip


def weights_of(model: OmniLM) -> list[float]:
    """Return the sum of each weight tensor and buffer of a model, computed in float64."""
    return [float(tensor.double().sum()) for tensor in model.state_dict().values()]


def run_share(folder: Path, begun: Connection, environment: dict[str, str]) -> None:
    """Train with every fault as one of several processes, and write the results to `FOLDER/<fault>.<rank>.json`.

    `environment` has torchrun's variables with rank and number of processes. Called by `rewriting.start`.
    """
    os.environ.update(environment)
    torch.set_num_threads(1)
    begun.send(None)
    sb.utils.distributed.ddp_init_group({"distributed_backend": "gloo"})
    for fault in FAULTS:
        found = run(folder / fault, fault, nonfinite_patience=PATIENCE)
        (folder / f"{fault}.{Share.of_torchrun().rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
