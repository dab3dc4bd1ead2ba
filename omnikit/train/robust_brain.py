"""A SpeechBrain Brain whose training cannot be spoilt by a bad batch, a diverged loss or a signal.

An optimiser step is skipped on all processes alike when the loss of one of its batches or one of its gradients is not
finite, or when a loss is far above that of a guess. The entries of its batches stand in the log. After too many skipped
steps in a row the run stops, and what is unusable never replaces a good checkpoint.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import if_main_process, is_distributed_initialized
from torch import Tensor, nn

from omnikit.errors import Stopped
from omnikit.train.epoch_progress import collective_device
from omnikit.train.stop_signals import StopRequest, stopped_by

logger = logging.getLogger(__name__)
PATIENCE = 10
"""Default of `--nonfinite_patience`, the optimiser steps in a row whose skipping stops a run."""
_ABOVE_GUESS = 20


def highest_loss(classes: int) -> float:
    """Return the cross-entropy (nats) from which a batch counts as diverged: 20 times that of a uniform guess."""
    return _ABOVE_GUESS * math.log(classes)


class RobustBrain(sb.Brain):
    """Skips optimiser steps that would spoil the weights, see the top of this file.

    Subclasses may set `highest_loss`, and call `check_validation` and `save_epoch` at the end of a validation stage.
    Needs `output_folder` in hparams. The run option `nonfinite_patience` (default 10) is the number of optimiser steps
    that may be skipped in a row. There is one optimiser, `self.optimizer`.
    """

    highest_loss = torch.finfo(torch.float32).max
    """A batch whose mean loss is above it is not learned from."""
    in_a_row = 0
    """Optimiser steps that were skipped since the last one that was taken."""
    judged = unusable = 0
    """Batches of the validation stage, and those whose loss is unusable."""
    signal = 0
    """Signal that any process got before the last optimiser step."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module] | None = None,
        opt_class: Callable[..., torch.optim.Optimizer] | None = None,
        hparams: Mapping[str, Any] | None = None,
        run_opts: Mapping[str, Any] | None = None,
        checkpointer: Checkpointer | None = None,
    ):
        run_opts = {"nonfinite_patience": PATIENCE, **(run_opts or {})}
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)

    def entries(self, batch: Any) -> Sequence[str]:
        """Return the ids of a batch's entries, which the log names where the batch is unusable."""
        return batch.id

    def usable(self, loss: Tensor) -> Tensor:
        """Return whether a mean loss is finite and not above `highest_loss` (bool tensor)."""
        return loss <= self.highest_loss  # false for NaN

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Train; SIGINT and SIGTERM end it after an optimiser step and a checkpoint.

        Raises:
            Stopped: by a signal, or because nothing more can be learned.
        """
        self.batches: list[tuple[Sequence[str], Tensor]] = []  # of the next step: ids, whether the loss is unusable
        with StopRequest() as self.request:
            super().fit(*args, **kwargs)

    def fit_batch(self, batch: Any) -> Tensor:
        self.current = self.entries(batch)
        return super().fit_batch(batch)

    def check_loss_isfinite(self, loss: Tensor) -> None:
        """Note whether a batch can be learned from; the device is not waited for before the optimiser step.

        Args:
            loss: scaled, and divided for accumulation, as SpeechBrain gives it.
        """
        whole = loss.detach() * self.grad_accumulation_factor / self.scaler.get_scale()
        self.batches.append((self.current, ~self.usable(whole)))

    def optimizers_step(self) -> None:
        """Take an optimiser step, or skip it on all processes alike.

        Raises:
            Stopped: too many were skipped in a row.
        """
        self.scaler.unscale_(self.optimizer)
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        # SpeechBrain's "negative for none" would turn the gradients around
        norm = torch.nn.utils.clip_grad_norm_(weights, self.max_grad_norm if self.max_grad_norm > 0 else math.inf)
        bad_loss, bad_gradient, self.signal = self._agree(norm)
        if bad_loss or (bad_gradient and not self._overflowed()):
            self._skip(bool(bad_loss))
        else:
            self.scaler.step(self.optimizer)
            self.in_a_row *= bad_gradient  # float16's scaler has skipped a step with one
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        self.batches.clear()
        if self.in_a_row and self.in_a_row >= self.nonfinite_patience:
            raise Stopped(f"training stopped after {self.in_a_row} unusable optimiser steps in a row; {self._advice()}")

    def evaluate_batch(self, batch: Any, stage: sb.Stage) -> Tensor:
        """Compute a batch's loss; NaN, which SpeechBrain leaves out of its mean, where it is unusable."""
        loss = super().evaluate_batch(batch, stage)
        self.judged += 1
        if self.usable(loss):
            return loss
        self.unusable += 1
        if if_main_process():
            entries = ", ".join(map(str, self.entries(batch)))
            logger.warning("%s: unusable loss %s; entries: %s", stage.name.lower(), float(loss), entries)
        return torch.full_like(loss, torch.nan)

    def check_validation(self) -> None:
        """Refuse to go on from weights with which no validation batch has a usable loss, or some have none while
        optimiser steps are being skipped.

        Raises:
            Stopped: they are such weights.
        """
        if self.unusable and (self.in_a_row or self.unusable == self.judged):
            found = f"{self.unusable} of {self.judged} validation batches have no usable loss"
            raise Stopped(f"training stopped: {found}; {self._advice()}")

    def save_epoch(self, meta: dict[str, Any], **options: Any) -> None:
        """Save a checkpoint at the end of an epoch, then stop if a signal has asked for it.

        Args:
            meta: figures that the checkpoint is listed with.
            options: see SpeechBrain's `Checkpointer.save_and_keep_only`.
        """
        if self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(meta=meta, **options)
        if number := self._any_process(self.request.signal):
            raise stopped_by(number, "after a checkpoint; start again with the same command to go on")

    def _fit_train(self, train_set: Any, epoch: int, enable: bool) -> None:
        self.batches.clear()  # an epoch may have ended between two batches of an optimiser step
        super()._fit_train(train_set, epoch, enable)

    def _fit_valid(self, valid_set: Any, epoch: int, enable: bool) -> None:
        self.judged = self.unusable = 0
        super()._fit_valid(valid_set, epoch, enable)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time: float, steps_since_ckpt: int) -> bool:
        """Not between two batches of an optimiser step: the gradients so far would be lost. Not while steps are being
        skipped either: the weights before may be what spoils the loss.

        Raises:
            Stopped: a signal asks for it.
        """
        if self.step % self.grad_accumulation_factor:
            return False
        if self.signal:
            saved = self.checkpointer is not None and not self.in_a_row
            if saved:
                self._save_intra_epoch_ckpt()
            how = "after a checkpoint" if saved else "without a new checkpoint"
            raise stopped_by(self.signal, f"{how}; start again with the same command to go on")
        return not self.in_a_row and super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)

    def _save_intra_epoch_ckpt(self) -> None:
        """Save as SpeechBrain does, but keep no more than the checkpointer does by itself: SpeechBrain would keep the
        checkpoint of the last whole epoch besides."""
        self.checkpointer.save_and_keep_only(end_of_epoch=False, verbosity=logging.DEBUG)

    def _agree(self, norm: Tensor) -> tuple[int, int, int]:
        """Return whether any process has an unusable loss or gradient, and a signal that reached one."""
        bad_loss = torch.stack([bad for _, bad in self.batches]).any().to(norm.device)
        flags = torch.stack([bad_loss, ~norm.isfinite()]).int()
        flags = torch.cat([flags, flags.new_tensor([self.request.signal])])
        return tuple(_highest(flags).tolist())

    def _overflowed(self) -> bool:
        """Return whether float16's scale may be what made a gradient infinite; the scaler then lowers it and skips the
        step by itself."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def _skip(self, bad_loss: bool) -> None:
        """Count a step that is not taken, and name the entries of the batches with an unusable loss; of all batches
        where it is a gradient that is not finite."""
        self.in_a_row += 1
        unusable = [ids for ids, bad in self.batches if bad or not bad_loss]
        entries = [str(name) for ids in _of_all_processes(unusable) for name in ids]
        why = "the loss is not finite or far too large" if bad_loss else "a gradient is not finite"
        if if_main_process():
            logger.warning(
                "optimiser step %d skipped (%d in a row): %s; entries: %s",
                self.optimizer_step + 1, self.in_a_row, why, ", ".join(entries),
            )  # fmt: skip

    def _any_process(self, number: int) -> int:
        return int(_highest(torch.tensor(number, device=collective_device())))

    def _advice(self) -> str:
        newest = "there is no checkpoint from before"
        with suppress(ValueError):  # all are damaged, which is not why the run stops
            if self.checkpointer is not None and (found := self.checkpointer.find_checkpoint()) is not None:
                newest = f"the newest checkpoint is {found.path}"
        log = Path(self.hparams.output_folder) / "log.txt"
        return f"{log} names their entries; {newest}; look at these entries, or lower the learning rate"


def _highest(values: Tensor) -> Tensor:
    """Return the highest values of all processes."""
    if is_distributed_initialized():
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    return values


def _of_all_processes(found: list[Any]) -> list[Any]:
    """Return the lists of all processes as one."""
    if not is_distributed_initialized():
        return found
    every: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, found)
    return [each for one in every for each in one]

