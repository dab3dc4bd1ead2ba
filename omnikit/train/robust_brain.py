"""A SpeechBrain Brain that withstands bad batches, diverged losses and stop signals.

All processes skip an optimiser step together if a loss or a gradient of one of its batches is not finite, or if a loss
is far above that of a uniform guess. The log names the manifest entries of these batches. After too many skipped steps
in a row the run stops, and no checkpoint is saved while steps are being skipped.

Losses and gradients are judged on the device, where an optimiser with a fused implementation also skips its step. The
CPU does not wait for the device to learn of it before `log_steps` optimiser steps are done; it then reads the flags of
all of them at once. For other optimisers, and for float16's gradient scaler, it waits in each step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import if_main_process, is_distributed_initialized
from torch import Tensor, nn

from omnikit.errors import Stopped
from omnikit.train.distributed import Alone
from omnikit.train.epoch_progress import collective_device
from omnikit.train.process_group import every_process
from omnikit.train.stop_signals import StopRequest, stopped_by

logger = logging.getLogger(__name__)
PATIENCE = 10
"""Default of `--nonfinite_patience`: number of consecutively skipped optimiser steps that stops a run."""
_ABOVE_GUESS = 20


def highest_loss(classes: int) -> float:
    """Return the cross-entropy (nats) above which a batch counts as diverged: 20 times that of a uniform guess."""
    return _ABOVE_GUESS * math.log(classes)


class StepFlags(NamedTuple):
    """Flags of an optimiser step, which are on the device until they are read, and the entries of its batches."""

    number: int  # of the optimiser step, from 1
    flags: Tensor  # [3]: any process has an unusable loss, any has a non-finite gradient, stop signal or 0
    batches: list[tuple[Sequence[str], Tensor]]  # of this process: ids of its entries, whether its loss is unusable
    rescaled: bool  # whether float16's loss scale may have caused the non-finite gradient


class RobustBrain(sb.Brain):
    """A SpeechBrain Brain that skips optimiser steps whose loss or gradients are not finite, and stops on signals.

    Subclasses may set `highest_loss`, and call `check_validation` and `save_epoch` at the end of a validation stage.
    Requires `output_folder` in hparams. The run option `nonfinite_patience` (default 10) is the number of consecutively
    skipped optimiser steps that stops the run. There is one optimiser, `self.optimizer`.
    """

    log_steps = 1
    """Number of optimiser steps after which their flags are read; skipped steps and signals are handled then.

    A subclass that raises it must call `read_flags` at the end of a training stage, too.
    """
    highest_loss = torch.finfo(torch.float32).max
    """Mean loss of a batch, in nats, above which its optimiser step is skipped."""
    in_a_row = 0
    """Number of optimiser steps skipped since the last one that was taken."""
    judged = unusable = 0
    """Number of batches in the validation stage, and of those whose loss is not finite or too large."""
    parallel = Alone()
    """How this process trains with others, if there are others."""
    signal = 0
    """Number of a stop signal that any process received before the last step whose flags were read; 0 means none."""

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
        """Return the ids of a batch's manifest entries, for the log."""
        return batch.id

    def usable(self, loss: Tensor) -> Tensor:
        """Return a bool tensor that is True if a mean loss is finite and at most `highest_loss`."""
        return loss <= self.highest_loss  # false for NaN

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Train the model; SIGINT and SIGTERM stop training after an optimiser step and a checkpoint.

        Raises:
            Stopped: a signal was received, or too many optimiser steps or validation batches were unusable.
        """
        self.batches: list[tuple[Sequence[str], Tensor]] = []  # of the next step: ids, unusable
        self.unread: list[StepFlags] = []
        try:
            with StopRequest() as self.request:
                super().fit(*args, **kwargs)
            self._wait_for_checkpoint()
        finally:
            if self.checkpointer is not None:
                self.checkpointer.join()

    def fit_batch(self, batch: Any) -> Tensor:
        self.current = self.entries(batch)
        return super().fit_batch(batch)

    def check_loss_isfinite(self, loss: Tensor) -> None:
        """Record whether the loss of a batch is usable, without synchronising with the device.

        Args:
            loss: loss after gradient scaling and division by the accumulation factor, as SpeechBrain passes it.
        """
        whole = loss.detach() * self.grad_accumulation_factor / self.scaler.get_scale()
        self.batches.append((self.current, ~self.usable(whole)))

    def optimizers_step(self) -> None:
        """Take an optimiser step, or skip it on all processes if a loss or gradient is unusable.

        Raises:
            Stopped: too many optimiser steps were skipped in a row.
        """
        self.scaler.unscale_(self.optimizer)
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        # SpeechBrain's negative value for no limit would flip the sign of the gradients
        norm = self.parallel.clip(weights, self.max_grad_norm if self.max_grad_norm > 0 else math.inf)
        flags = self._agree(norm.to(self.device))
        self.unread.append(StepFlags(self.optimizer_step + 1, flags, self.batches, self._overflowed()))
        self.batches = []
        self._step_unless_unusable(self.unread[-1])
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        if self.optimizer_step % self.log_steps == 0:
            self.read_flags()

    def _step_unless_unusable(self, step: StepFlags) -> None:
        """Let the optimiser take its step, unless a loss or gradient is unusable."""
        if getattr(self.optimizer, "_step_supports_amp_scaling", False) and not self.scaler.is_enabled():
            # fused implementations skip the step on the device, by the protocol of torch's gradient scaler
            self.optimizer.grad_scale, self.optimizer.found_inf = None, step.flags[:2].amax().float()
            self.optimizer.step()
            del self.optimizer.grad_scale, self.optimizer.found_inf
            return
        bad_loss, bad_gradient, _ = step.flags.tolist()
        if not bad_loss and (step.rescaled or not bad_gradient):
            self.scaler.step(self.optimizer)

    def read_flags(self) -> None:
        """Read the flags of the optimiser steps since the last reading from the device, and act on them.

        This is the only time at which the CPU waits for the device; figures for the log are read together with the
        flags.

        Raises:
            Stopped: too many optimiser steps were skipped in a row.
        """
        if not self.unread:
            return
        unread, self.unread = self.unread, []
        tensors = [step.flags for step in unread]
        tensors += [unusable for step in unread for _, unusable in step.batches]
        found = [each.detach().reshape(-1).float() for each in (*tensors, self.logged_figures())]
        values = iter(torch.cat(found).tolist())
        flags = [[int(next(values)) for _ in step.flags] for step in unread]
        batches = [[(ids, bool(next(values))) for ids, _ in step.batches] for step in unread]
        self.signal = max(signal for _, _, signal in flags)
        for step, (bad_loss, bad_gradient, _), ids in zip(unread, flags, batches, strict=True):
            if bad_loss or (bad_gradient and not step.rescaled):
                self._skip(step.number, ids, bool(bad_loss))
            else:
                self.in_a_row *= bad_gradient  # a step with one was skipped by float16's gradient scaler
            if self.in_a_row and self.in_a_row >= self.nonfinite_patience:
                many = f"{self.in_a_row} unusable optimiser steps in a row"
                raise Stopped(f"training stopped after {many}; {self._advice()}")
        self.on_logged_step(list(values))

    def logged_figures(self) -> Tensor:
        """Return figures [n] for the log that are on the device; see `on_logged_step`."""
        return torch.zeros(0, device=self.device)

    def on_logged_step(self, figures: list[float]) -> None:
        """Take the values of `logged_figures`, after every `log_steps` optimiser steps."""

    def evaluate_batch(self, batch: Any, stage: sb.Stage) -> Tensor:
        """Return a validation batch's loss, or NaN, which SpeechBrain's mean ignores, if the loss is unusable."""
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
        """Stop the run if validation shows that its weights are unusable.

        Raises:
            Stopped: no validation batch has a usable loss, or some have none while optimiser steps are being skipped.
        """
        judged, unusable = map(sum, zip(*every_process((self.judged, self.unusable)), strict=True))
        if unusable and (self.in_a_row or unusable == judged):
            found = f"{unusable} of {judged} validation batches have no usable loss"
            raise Stopped(f"training stopped: {found}; {self._advice()}")

    def save_epoch(self, meta: dict[str, Any], **options: Any) -> None:
        """Save a checkpoint at the end of an epoch, then stop if a signal was received.

        Args:
            meta: validation figures, stored as the checkpoint's metadata.
            options: see SpeechBrain's `Checkpointer.save_and_keep_only`.

        Raises:
            Stopped: a process has received a signal.
        """
        if self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(meta=meta, aside=True, **options)
        if number := self._any_process(self.request.signal):
            self._wait_for_checkpoint()
            raise stopped_by(number, "after a checkpoint; start again with the same command to go on")

    def _fit_train(self, train_set: Any, epoch: int, enable: bool) -> None:
        self.batches = []  # an epoch may have ended between two batches of an optimiser step
        super()._fit_train(train_set, epoch, enable)

    def _fit_valid(self, valid_set: Any, epoch: int, enable: bool) -> None:
        self.judged = self.unusable = 0
        super()._fit_valid(valid_set, epoch, enable)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time: float, steps_since_ckpt: int) -> bool:
        """Return whether to save an intra-epoch checkpoint now.

        None is saved between two batches of an optimiser step, since the accumulated gradients would be lost, nor while
        steps are being skipped, since the current weights may be the reason. Whether they are is known after each
        `log_steps` optimiser steps.

        Raises:
            Stopped: a process has received a signal.
        """
        if self.batches or self.unread:
            return False
        if self.checkpointer is not None:
            self.checkpointer.check()
        if self.signal:
            saved = self.checkpointer is not None and not self.in_a_row
            if saved:
                self._save_intra_epoch_ckpt()
                self._wait_for_checkpoint()
            how = "after a checkpoint" if saved else "without a new checkpoint"
            raise stopped_by(self.signal, f"{how}; start again with the same command to go on")
        return not self.in_a_row and super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)

    def _save_intra_epoch_ckpt(self) -> None:
        """Save an intra-epoch checkpoint without also keeping that of the last epoch, as SpeechBrain would do."""
        self.checkpointer.save_and_keep_only(end_of_epoch=False, verbosity=logging.DEBUG, aside=True)

    def _wait_for_checkpoint(self) -> None:
        if self.checkpointer is not None:
            self.checkpointer.wait()

    def _agree(self, norm: Tensor) -> Tensor:
        """Return flags [3]: any process has an unusable loss, any has a non-finite gradient, a signal or 0."""
        bad_loss = torch.stack([bad for _, bad in self.batches]).any().to(norm.device)
        signal = torch.full((), self.request.signal, device=norm.device)  # filled there, a copy would wait
        return _highest(torch.stack([bad_loss, ~norm.isfinite(), signal]).int())

    def _overflowed(self) -> bool:
        """Return whether float16's loss scale may have caused an infinite gradient.

        The gradient scaler then skips the step and lowers the scale by itself.
        """
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def _skip(self, number: int, batches: Sequence[tuple[Sequence[str], bool]], bad_loss: bool) -> None:
        """Count a skipped optimiser step and log the entries of its unusable batches.

        If a gradient is not finite, the entries of all its batches are logged.

        Args:
            number: number of the optimiser step, from 1.
            batches: ids of the entries of each of its batches, and whether its loss is unusable.
            bad_loss: whether the loss is the reason.
        """
        self.in_a_row += 1
        unusable = [ids for ids, bad in batches if bad or not bad_loss]
        entries = [str(name) for found in every_process(unusable) for ids in found for name in ids]
        why = "the loss is not finite or far too large" if bad_loss else "a gradient is not finite"
        if if_main_process():
            logger.warning(
                "optimiser step %d skipped (%d in a row): %s; entries: %s",
                number, self.in_a_row, why, ", ".join(entries),
            )  # fmt: skip

    def _any_process(self, number: int) -> int:
        return int(_highest(torch.tensor(number, device=collective_device())))

    def _advice(self) -> str:
        newest = "there is no checkpoint from before"
        with suppress(ValueError):  # all checkpoints are damaged, but the run stops for another reason
            if self.checkpointer is not None and (found := self.checkpointer.find_checkpoint()) is not None:
                newest = f"the newest checkpoint is {found.path}"
        log = Path(self.hparams.output_folder) / "log.txt"
        return f"{log} names their entries; {newest}; look at these entries, or lower the learning rate"


def _highest(values: Tensor) -> Tensor:
    """Return the element-wise maximum of a tensor over all processes."""
    if is_distributed_initialized():
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    return values
