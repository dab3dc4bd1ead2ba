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
from omnikit.losses import TASKS, StreamLosses, label_weights
from omnikit.model import OmniLM
from omnikit.tasks import TASK_NAMES
from omnikit.torchrun import Share
from omnikit.train.compile_blocks import whether_to_compile
from omnikit.train.distributed import make_parallel
from omnikit.train.epoch_progress import EpochProgress, StreamSums, named_streams
from omnikit.train.plot_curves import draw_curves, read_log
from omnikit.train.robust_brain import RobustBrain, highest_loss
from omnikit.train.speed_figures import SpeedFigures, described

LOG = "train_log.jsonl"
LOG_STEPS = {"cpu": 1, "cuda": 10}
"""Default of `log_steps` by device type: reading a figure from a GPU stops it for a moment."""


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

    Stored features are converted to float32, which does not change their values. Recordings without features are
    encoded here as in evaluation: in float32 and without gradients.
    """
    if not batch.has_recordings:
        return batch.features.float(), batch.lengths
    with torch.no_grad(), torch.autocast(batch.wav.device.type, enabled=False):
        return batch.with_features(*model.encoder(batch.wav, batch.wav_lengths))


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

    A recipe's subclass implements `compute_forward`, from a batch on the device to predictions, and
    `compute_objectives`, from predictions to the batch's part of the loss of its optimiser step, see
    `omnikit.losses`; it calls `log_losses`. The parts of an optimiser step are added up, and the step is taken where
    `Batch.ends_step` says so. Under torchrun each process draws its own batches.

    Freeze parameters before the Brain is built: only those that require gradients are optimised and synchronised.

    Requires the module `model`, and in hparams: `stream_weights` (text, audio), `loss_normalization`, `tasks`,
    `validate_first`, `peak_lr`, `min_lr`, `warmup_steps`, `epochs`, `steps_per_epoch` (optimiser steps), `log_steps`,
    `output_folder`, `stage`, `part_names`, `loggers`, `sampler` (the batch sampler), `validate` (a function from the
    brain to validation figures, called by all processes after each epoch), `compile_blocks` (see
    `omnikit.train.compile_blocks`), `distributed` and `hang_timeout` (see `omnikit.train.distributed`).
    """

    bar: tqdm | None = None
    compiled = False
    """Whether torch compiles the loss of training steps, which is so where it compiles the transformer blocks."""
    valid_loader: Any = None
    """Loader of the validation batches; None without validation."""
    train_loader: Any = None
    """Loader of the training batches, whose waiting time is reported if it is a `BatchLoader`."""
    recent_loss = torch.tensor(torch.nan)
    """Mean over the streams of their recent training losses in nats, on the CPU."""

    def __init__(self, modules: Mapping[str, OmniLM], *args: Any, **kwargs: Any):
        self.model = modules["model"]
        super().__init__({"model": OneForward(self.model)}, *args, **kwargs)

    def entries(self, batch: Batch) -> Sequence[str]:
        return batch.ids

    def fit_batch(self, batch: Batch) -> Tensor:
        """Train on one batch, and take the optimiser step if this is its last batch.

        Returns:
            A recent loss for SpeechBrain's mean, on the CPU: that of this batch would make the CPU wait for the device.
        """
        self.current = self.entries(batch)
        batch = batch.to(self.device)
        self.on_fit_batch_start(batch, batch.ends_step)
        with self.no_sync(not batch.ends_step):
            with self.training_ctx:
                loss = self.modules.model(self._loss, batch)
            scaled = self.scaler.scale(loss)
            self.check_loss_isfinite(scaled)
            if scaled.requires_grad:  # not if the parts that its labels train are frozen
                scaled.backward()
        if batch.ends_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, None, loss, batch.ends_step)
        return self.recent_loss

    def evaluate_batch(self, batch: Batch, stage: sb.Stage) -> Tensor:
        """Return the loss of a validation batch, see `RobustBrain.evaluate_batch`."""
        self.parallel.beat()
        return super().evaluate_batch(batch.to(self.device), stage)

    def _loss(self, batch: Batch) -> Tensor:
        predictions = self.compute_forward(batch, sb.Stage.TRAIN)
        loss = self.compute_objectives(predictions, batch, sb.Stage.TRAIN)
        return self.parallel.joint_loss(loss, self.model, batch.ends_step)

    def label_weights(self, batch: Batch) -> Tensor:
        """Return the weight of one label of each task and stream of a batch in the objective [tasks, S]."""
        return label_weights(batch.step_labels, self.stream_weights, self.task_shares)

    def log_losses(self, losses: StreamLosses, stage: sb.Stage) -> None:
        """Add the losses of a batch to the loss sums of the epoch, unless its mean loss is not finite or too large."""
        self.mean_loss = losses.objective(self.stream_weights)
        sums = self.progress.sums if stage == sb.Stage.TRAIN else self.valid_sums
        sums.add(losses, self.usable(self.mean_loss))

    def check_loss_isfinite(self, loss: Tensor) -> None:
        """Record whether the mean loss of a batch is usable; `loss` is the batch's part of that of the optimiser step.
        """
        self.batches.append((self.current, ~self.usable(self.mean_loss)))

    def fit(self, epoch_counter: Any, train_set: Any, valid_set: Any = None, **kwargs: Any) -> None:
        self.train_loader, self.valid_loader = train_set, valid_set
        try:
            super().fit(epoch_counter, train_set, valid_set, **kwargs)
        finally:
            self.parallel.stop_watch()
            if self.bar is not None:  # or its line would be printed after the error message
                self.bar.close()

    def on_fit_start(self) -> None:
        layout, hparams = self.model.layout, self.hparams
        self.progress = EpochProgress(layout.num_streams, self.device)
        if self.checkpointer is not None:  # older checkpoints lack it
            self.checkpointer.add_recoverable("progress", self.progress, optional_load=True)
        super().on_fit_start()  # resumes: loads the newest undamaged checkpoint, if there is one
        text, audio = hparams.stream_weights["text"], hparams.stream_weights["audio"]
        self.total_steps = hparams.epochs.limit * hparams.steps_per_epoch
        self.compiled, _ = whether_to_compile(hparams.compile_blocks, torch.device(self.device))
        self.log_steps = hparams.log_steps or LOG_STEPS.get(torch.device(self.device).type, 1)
        self.highest_loss = highest_loss(max(layout.sizes))
        self.speed = SpeedFigures(self.model, self.precision, Share.of_torchrun().processes, self.train_loader)
        self.stream_weights = torch.tensor([text] + [audio] * (layout.num_streams - 1), device=self.device).float()
        shares = [float(hparams.tasks.get(name, 0)) for name in TASK_NAMES]
        self.task_shares = torch.tensor(shares, device=self.device) if hparams.loss_normalization == TASKS else None
        self.parallel.start_watch()
        self.train_figures, self.speed_figures = {}, {}
        if self.optimizer_step == 0 and self.valid_loader is not None and hparams.validate_first:
            self._fit_valid(self.valid_loader, epoch=0, enable=False)

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
        self.speed.add(batch, ends_step=should_step)
        if should_step:
            self.progress.steps += 1
            self.bar.update()

    def logged_figures(self) -> Tensor:
        """Return the running mean of recent losses of each stream [S], see `RobustBrain.logged_figures`."""
        return self.progress.sums.late

    def on_logged_step(self, figures: list[float]) -> None:
        """Show recent losses in the progress bar; called every `log_steps` optimiser steps."""
        recent = named_streams(figures)
        self.bar.set_postfix({**{name: f"{value:.2f}" for name, value in recent.items()}, **self.speed.shown()})
        self.recent_loss = torch.tensor(list(recent.values())).mean()

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        if stage != sb.Stage.TRAIN:
            self.valid_sums = StreamSums(self.model.layout.num_streams, self.device)
            return
        self.speed.restart()
        if not self.step:  # otherwise an intra-epoch checkpoint has restored the sums
            self.progress.restart()
        self.hparams.sampler.set_epoch(epoch, self.progress.steps)
        title = f"{self.hparams.stage} epoch {epoch}/{self.hparams.epochs.limit}"
        self.bar = tqdm(
            total=self.hparams.steps_per_epoch,
            initial=self.progress.steps,
            desc=title,
            dynamic_ncols=True,
            disable=not sb.utils.distributed.if_main_process(),
        )

    def on_stage_end(self, stage: sb.Stage, stage_loss: float, epoch: int | None = None) -> None:
        if stage == sb.Stage.TRAIN:
            self.read_flags()
            self.bar.close()
            self.progress.sums.gather()
            self.train_figures = {**self._figures(self.progress.sums), "seconds": self.progress.seconds}
            self.speed_figures = self.speed.figures(self.total_steps - self.optimizer_step)
            if self.progress.skipped:
                self.train_figures["skipped steps"] = self.progress.skipped
            return
        self.check_validation()
        self.valid_sums.gather(everywhere=True)
        figures = self._figures(self.valid_sums)
        self._report({**figures, **self.hparams.validate(self)}, epoch)
        if epoch == 0:  # before training, so there is nothing to save
            return
        self.save_epoch({"loss": figures["loss"]}, num_to_keep=1, keep_recent=True)

    def _fit_valid(self, *args: Any, **kwargs: Any) -> None:
        with self.parallel.whole_weights():
            super()._fit_valid(*args, **kwargs)

    def _skip(self, *step: Any) -> None:
        self.progress.skipped += 1
        super()._skip(*step)

    def _save_intra_epoch_ckpt(self) -> None:
        self.progress.sums.gather()
        super()._save_intra_epoch_ckpt()

    def _figures(self, sums: StreamSums) -> dict[str, Any]:
        """Return the objective, the mean loss per stream, and `tasks`, each task's share of the labels and mean loss.

        Objective and streams are those of the tasks that the stage trains. The dict is empty if no batch was usable.
        """
        trained = sums.of_tasks([name for name, share in self.hparams.tasks.items() if share > 0])
        if not (means := trained.means()):
            return {}
        weights = self.stream_weights.cpu().double()
        shares = None if self.task_shares is None else self.task_shares.cpu().double()
        loss = float(trained.losses().objective(weights, shares))
        return {"loss": loss, **means, "tasks": sums.by_task(weights)}

    @sb.utils.distributed.main_process_only
    def _report(self, figures: dict[str, float], epoch: int) -> None:
        where = {"stage": self.hparams.stage, "epoch": epoch, "step": self.optimizer_step}
        self._log({**where, "parts": self.hparams.part_names}, figures)

    def _log(self, where: dict, valid: dict) -> None:
        figures = {"train": self.train_figures, "speed": self.speed_figures, "valid": valid}
        line = {**where, **{name: _rounded(each) for name, each in figures.items()}}
        path = Path(self.hparams.output_folder) / LOG
        # an epoch that is repeated after a kill replaces its earlier line
        kept = [old for old in read_log(path) if old["epoch"] < line["epoch"]] if path.exists() else []
        write_text(path, "".join(json.dumps(each) + "\n" for each in [*kept, line]))
        self.hparams.loggers.log_stats(where, {**line["train"], "speed": line["speed"]}, line["valid"])
        draw_curves(path, path.with_name("curves.png"))
        shown = {k: v for k, v in line["valid"].items() if not k.startswith("audio") and k != "tasks"}
        speed = f"; {described(self.speed_figures)}" if self.speed_figures else ""
        Console().print(f"{where['stage']} epoch {where['epoch']}: valid {shown}{speed}")


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _rounded(value) if isinstance(value, Mapping) else round(value, 5) if isinstance(value, float) else value
        for key, value in figures.items()
    }
