"""Training by several processes: whole copies of the model (DDP), or shards of it (FSDP2), by `--distributed`.

DDP (Li et al. 2020, arXiv 2006.15704) averages the gradients of copies of the model. FSDP (Zhao et al. 2023, arXiv
2304.11277) stores a share of each weight in each process and gathers the weights of one block while it is computed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from omnikit.freezing import FIXED
from omnikit.model import OmniLM
from omnikit.torchrun import Share
from omnikit.train.process_group import every_process, shared_store, under_torchrun
from omnikit.train.transformer_blocks import transformer_blocks
from omnikit.train.unused_parts import UnusedParts
from omnikit.train.watchdog import Watchdog


def check_distributed(kind: str, precision: str | None) -> None:
    """Refuse a way of distributing that does not fit the processes or the precision.

    Raises:
        ValueError: the message names the flag and the value.
    """
    if kind == "fsdp" and not under_torchrun():
        raise ValueError("--distributed fsdp: needs several processes; start the recipe with torchrun")
    if kind == "fsdp" and precision == "fp16":
        raise ValueError("--precision fp16: does not fit --distributed fsdp (choices: bf16, fp32)")


class Alone:
    """Training by one process, and the interface of the classes for several."""

    def wrap(self, module: nn.Module, model: OmniLM) -> nn.Module:
        """Return the module through which forward passes with gradients are computed.

        Args:
            module: module that contains the model and computes the loss in its `forward`.
            model: model that is trained, its frozen parts frozen.
        """
        return module

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """Scale the gradients to a norm of at most `limit`, over all processes, and return their norm before."""
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def joint_loss(self, loss: Tensor, model: OmniLM, ends_step: bool) -> Tensor:
        """Return the loss whose gradients, averaged over the processes, are the sum of those of all processes.

        Args:
            loss: loss of this process.
            model: model that is trained.
            ends_step: whether the optimiser step follows.
        """
        return loss

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Give the process all weights in a `with` block, so that it can compute without the other processes."""
        yield

    def beat(self) -> None:
        """Tell the watchdog that this process has made progress."""

    def start_watch(self) -> None:
        """Begin to watch the other processes."""

    def stop_watch(self) -> None:
        """Leave the watch."""


class _Several(Alone):
    """Training by several processes that watch each other; see `omnikit.train.watchdog` for `hang_timeout`."""

    def __init__(self, hang_timeout: float):
        self.watchdog = Watchdog(shared_store(), hang_timeout)

    def wrap(self, module: nn.Module, model: OmniLM) -> nn.Module:
        wrapped = self._wrap(module, model)
        # before the first and after the last of its collective operations, to tell waiting processes from a hung one
        wrapped.register_forward_pre_hook(lambda *_: self.beat(), prepend=True)
        wrapped.register_forward_hook(lambda *_: self.beat())
        return wrapped

    def joint_loss(self, loss: Tensor, model: OmniLM, ends_step: bool) -> Tensor:
        return loss * Share.of_torchrun().processes

    @abstractmethod
    def _wrap(self, module: nn.Module, model: OmniLM) -> nn.Module:
        """Return the module for forward passes, see `wrap`."""

    def beat(self) -> None:
        self.watchdog.beat()

    def start_watch(self) -> None:
        self.watchdog.start()

    def stop_watch(self) -> None:
        self.watchdog.stop()


class Replicated(_Several):
    """Training by several processes with a copy of the model each (DDP).

    DistributedDataParallel averages the gradients of parameters that some process used in the last batch of the
    optimiser step, and would leave the processes' gradients of earlier batches apart. So the loss of the last batch
    names all parameters as used; those without any gradient in any process still get none.
    """

    def joint_loss(self, loss: Tensor, model: OmniLM, ends_step: bool) -> Tensor:
        loss = super().joint_loss(loss, model, ends_step)
        return _Joined.apply(loss, *(p for p in model.parameters() if p.requires_grad)) if ends_step else loss

    def _wrap(self, module: nn.Module, model: OmniLM) -> nn.Module:
        device = model.device
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # tables that training does not change
            find_unused_parameters=True,  # a batch without speech does not use the adapter, for example
        )


class _Joined(torch.autograd.Function):
    """The identity of a loss that names further parameters as its inputs, to which it gives no gradient."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.others = len(parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, *[None] * ctx.others


class Sharded(_Several):
    """Training by several processes that share the weights, gradients and optimiser states among them (FSDP2).

    Each block of the backbone, frozen or not, and of the TTS adapter is gathered while it is computed; everything else
    (embeddings, heads, norms, adapter) during the whole forward and backward pass, since the loss reads the heads'
    weights. Encoder and codec stay whole in each process: they are small, and not all batches need them.

    Gradients are reduced after each micro-batch, because unreduced ones would take the memory that sharding saves.

    Args:
        hang_timeout: see `Watchdog`.
        dtype: type in which weights are gathered and computed with; None = their own. Gradients are averaged in
            float32.
    """

    def __init__(self, hang_timeout: float, dtype: torch.dtype | None = None):
        super().__init__(hang_timeout)
        self.policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        self.device = torch.device("cpu")
        self.root: FSDPModule | None = None
        self.unused: UnusedParts | None = None

    def _wrap(self, module: nn.Module, model: OmniLM) -> nn.Module:
        self.device = model.device
        for tensor in (*module.parameters(), *module.buffers()):  # as DDP does; random weights may differ
            torch.distributed.broadcast(tensor.detach(), src=0)
        whole = {p for name, part in model.parts().items() if name in FIXED for p in part.parameters()}
        for block in transformer_blocks(model):
            fully_shard(block, mp_policy=self.policy)
        self.root = fully_shard(module, mp_policy=self.policy, ignored_params=whole)
        self.unused = UnusedParts(self.root, model)
        return self.root

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        parameters = list(parameters)
        self.unused.drop_gradients()
        return super().clip(parameters, limit)

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        groups = [module for module in self.root.modules() if isinstance(module, FSDPModule)]
        self.root.set_reshard_after_forward(False)
        for group in groups:
            group.unshard()
        try:
            # gathered weights have the type of training, so validation computes in it, too
            with torch.autocast(self.device.type, self.policy.param_dtype, enabled=self.policy.param_dtype is not None):
                yield
        finally:
            self.root.set_reshard_after_forward(True)
            for group in groups:
                group.reshard()


def make_parallel(kind: str, hang_timeout: float, precision: str = "fp32") -> Alone:
    """Return the way in which this process trains with the others, if there are others.

    Args:
        kind: `ddp` or `fsdp`.
        hang_timeout: minutes after which a process that finishes no step ends the training.
        precision: SpeechBrain's precision of training, for weights that are sharded.
    """
    dtype = torch.bfloat16 if precision == "bf16" else None
    if not torch.distributed.is_initialized():
        return Alone()
    return Sharded(hang_timeout, dtype) if kind == "fsdp" else Replicated(hang_timeout)


def own_share(items: list[Any]) -> list[Any]:
    """Return every n-th of the items for this process of n, such that together the processes have each of them once."""
    share = Share.of_torchrun()
    return items[share.rank :: share.processes]


def in_order(shares: list[list[Any]]) -> list[Any]:
    """Return the items whose shares `own_share` has given to the processes, in their original order."""
    longest = max(map(len, shares), default=0)
    return [share[n] for n in range(longest) for share in shares if n < len(share)]


def gather_shares(own: list[Any]) -> list[Any]:
    """Return the results of all processes for their shares of some items, in the order of the items."""
    return in_order(every_process(own))


