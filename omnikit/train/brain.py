"""SpeechBrain's Brain for training an `OmniLM`: schedule, loss sums, progress bar, log and validation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

from omnikit.data.collate import Batch
from omnikit.files import write_text
from omnikit.interfaces import count_parameters
from omnikit.losses import StreamLosses, weighted_mean
from omnikit.model import OmniLM
from omnikit.train.distributed import make_parallel
from omnikit.train.epoch_progress import EpochProgress, StreamSums
from omnikit.train.plot_curves import draw_curves, read_log
from omnikit.train.robust_brain import RobustBrain, highest_loss

LOG = "train_log.jsonl"


def cosine_rate(step: int, *, peak: float, lowest: float, warmup: int, total: int) -> float:
    """Return the learning rate at an optimiser step: linear warm-up, then half a cosine from `peak` to `lowest`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * done))


def parameter_table(model: OmniLM, trainable: list[str], origins: dict[str, str] | None = None) -> Table:
    """Return a table of the model's parts: parameters, trainable or frozen, and the origin of their weights."""
    table = Table(title="Parameters by part")
    for column, justify in (("part", "left"), ("parameters", "right"), ("state", "left"), ("weights from", "left")):
        table.add_column(column, justify=justify)
    for name, module in model.parts().items():
        state = "trainable" if name in trainable else "frozen"
        table.add_row(name, f"{count_parameters(module):,}", state, (origins or {}).get(name, "random"))
    total = sum(count_parameters(m, trainable_only=True) for n, m in model.parts().items() if n in trainable)
    table.add_row("total", f"{count_parameters(model):,}", f"{total:,} trainable", "")
    return table


def encoded(model: OmniLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return encoder features [B, T, D] of a batch and their lengths [B].

    Stored features are returned unchanged. Recordings without features are encoded here as in evaluation: in float32
    and without gradients.
    """
    at = batch.to_encode
    if not at.any():
        return batch.features, batch.lengths
    with torch.no_grad(), torch.autocast(batch.wav.device.type, enabled=False):
        return batch.with_features(*model.encoder(batch.wav[at], batch.samples[at]))


class OneForward(nn.Module):
    """A wrapper of the model whose `forward` calls a given function.

    DistributedDataParallel averages only gradients of what its module's `forward` computes, so forward pass and loss
    run inside it.
    """

    def __init__(self, model: OmniLM):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        return function(*arguments)


class OmniBrain(RobustBrain):
    """A Brain that trains an `OmniLM` with warm-up, a cosine schedule and task-mixed batches.

    A recipe's subclass implements `compute_forward`, from a batch to predictions, and `compute_objectives`, from
    predictions to the loss, which calls `log_losses`. Under torchrun each process draws its own batches.

    Freeze parameters before the Brain is built: only those that require gradients are optimised and synchronised.

    Requires the module `model`, and in hparams: `stream_weights` (text, audio), `peak_lr`, `min_lr`,
    `warmup_steps`, `epochs`, `steps_per_epoch` (optimiser steps), `output_folder`, `stage`, `part_names`,
    `tensorboard`, `sampler` (the batch sampler), `validate` (a function from the brain to validation figures, called
    by all processes after each epoch), `distributed` and `hang_timeout` (see `omnikit.train.distributed`).
    """

    bar: tqdm | None = None

    def __init__(self, modules: Mapping[str, OmniLM], *args: Any, **kwargs: Any):
        self.model = modules["model"]
        super().__init__({"model": OneForward(self.model)}, *args, **kwargs)

    def entries(self, batch: Batch) -> Sequence[str]:
        return batch.ids

    def fit_batch(self, batch: Batch) -> Tensor:
        """Train on one batch as SpeechBrain does, but compute forward pass and loss inside `OneForward`."""
        self.current = self.entries(batch)
        should_step = self.step % self.grad_accumulation_factor == 0
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx:
                loss = self.modules.model(self._loss, batch)
            scaled = self.scaler.scale(loss / self.grad_accumulation_factor)
            self.check_loss_isfinite(scaled)
            scaled.backward()
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, None, loss, should_step)
        return loss.detach().cpu()

    def _loss(self, batch: Batch) -> Tensor:
        predictions = self.compute_forward(batch, sb.Stage.TRAIN)
        return self.compute_objectives(predictions, batch, sb.Stage.TRAIN)

    def log_losses(self, loss: Tensor, losses: StreamLosses, stage: sb.Stage) -> None:
        """Add the losses of a batch to the loss sums of the epoch, unless its mean loss is not finite or too large."""
        if self.usable(loss):
            (self.progress.sums if stage == sb.Stage.TRAIN else self.valid_sums).add(losses)

    def fit(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().fit(*args, **kwargs)
        finally:
            self.parallel.stop_watch()
            if self.bar is not None:  # or its line would be printed after the error message
                self.bar.close()

    def on_fit_start(self) -> None:
        layout = self.model.layout
        self.progress = EpochProgress(layout.num_streams)
        if self.checkpointer is not None:  # older checkpoints lack it
            self.checkpointer.add_recoverable("progress", self.progress, optional_load=True)
        super().on_fit_start()  # resumes: loads the newest undamaged checkpoint, if there is one
        text, audio = self.hparams.stream_weights["text"], self.hparams.stream_weights["audio"]
        self.total_steps = self.hparams.epochs.limit * self.hparams.steps_per_epoch
        self.highest_loss = highest_loss(max(layout.sizes))
        self.stream_weights = torch.tensor([text] + [audio] * (layout.num_streams - 1), device=self.device)
        self.parallel.start_watch()

    def _wrap_distributed(self) -> None:
        if self.checkpointer is not None:
            self.checkpointer.identify_frozen()
        self.parallel = make_parallel(self.hparams.distributed, self.hparams.hang_timeout, self.precision)
        self.modules["model"] = self.parallel.wrap(self.modules["model"], self.model)

    def init_optimizers(self) -> None:
        self.optimizer = self.opt_class([p for p in self.model.parameters() if p.requires_grad])
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def on_fit_batch_start(self, batch: Batch, should_step: bool) -> None:
        self.parallel.beat()
        rate = cosine_rate(
            self.optimizer_step,
            peak=self.hparams.peak_lr,
            lowest=self.hparams.min_lr,
            warmup=self.hparams.warmup_steps,
            total=self.total_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def on_fit_batch_end(self, batch: Batch, outputs: None, loss: Tensor, should_step: bool) -> None:
        self.parallel.beat()
        self.bar.update()
        if self.step % 10 == 0:
            self.bar.set_postfix({name: f"{value:.2f}" for name, value in self.progress.sums.recent().items()})

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        if stage != sb.Stage.TRAIN:
            self.valid_sums = StreamSums(self.model.layout.num_streams)
            return
        if not self.step:  # otherwise an intra-epoch checkpoint has restored the sums
            self.progress.restart()
        self.hparams.sampler.set_epoch(epoch)
        title = f"{self.hparams.stage} epoch {epoch}/{self.hparams.epochs.limit}"
        self.bar = tqdm(
            total=self.hparams.steps_per_epoch * self.grad_accumulation_factor,
            initial=self.step,
            desc=title,
            dynamic_ncols=True,
            disable=not sb.utils.distributed.if_main_process(),
        )

    def on_stage_end(self, stage: sb.Stage, stage_loss: float, epoch: int | None = None) -> None:
        if stage == sb.Stage.TRAIN:
            self.bar.close()
            self.progress.sums.gather()
            self.train_figures = {**self._figures(self.progress.sums), "seconds": self.progress.seconds}
            if self.progress.skipped:
                self.train_figures["skipped steps"] = self.progress.skipped
            return
        self.check_validation()
        self.valid_sums.gather(everywhere=True)
        figures = self._figures(self.valid_sums)
        self._report({**figures, **self.hparams.validate(self)}, epoch)
        self.save_epoch({"loss": figures["loss"]}, num_to_keep=1, keep_recent=True)

    def evaluate_batch(self, batch: Batch, stage: sb.Stage) -> Tensor:
        self.parallel.beat()
        return super().evaluate_batch(batch, stage)

    def _fit_valid(self, *args: Any, **kwargs: Any) -> None:
        with self.parallel.whole_weights():
            super()._fit_valid(*args, **kwargs)

    def _skip(self, bad_loss: bool) -> None:
        self.progress.skipped += 1
        super()._skip(bad_loss)

    def _save_intra_epoch_ckpt(self) -> None:
        self.progress.sums.gather()
        super()._save_intra_epoch_ckpt()

    def _figures(self, sums: StreamSums) -> dict[str, float]:
        """Return the weighted mean loss and the mean loss per stream by name; an empty dict if no batch was usable."""
        means = sums.means()
        return {"loss": float(weighted_mean(sums.losses(), self.stream_weights.cpu())), **means} if means else {}

    @sb.utils.distributed.main_process_only
    def _report(self, figures: dict[str, float], epoch: int) -> None:
        where = {"stage": self.hparams.stage, "epoch": epoch, "step": self.optimizer_step}
        self._log({**where, "parts": self.hparams.part_names}, figures)

    def _log(self, where: dict, valid: dict) -> None:
        line = {**where, "train": _rounded(self.train_figures), "valid": _rounded(valid)}
        path = Path(self.hparams.output_folder) / LOG
        # an epoch that is repeated after a kill replaces its earlier line
        kept = [old for old in read_log(path) if old["epoch"] < line["epoch"]] if path.exists() else []
        write_text(path, "".join(json.dumps(each) + "\n" for each in [*kept, line]))
        self.hparams.tensorboard.log_stats(where, line["train"], line["valid"])
        draw_curves(path, path.with_name("curves.png"))
        shown = {k: v for k, v in line["valid"].items() if not k.startswith("audio")}
        Console().print(f"{where['stage']} epoch {where['epoch']}: valid {shown}")


def _rounded(figures: dict) -> dict:
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}
