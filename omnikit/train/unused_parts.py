"""The same backward pass in all processes whatever their batches hold, for trainings that shard the weights (FSDP2).

A batch without speech does not use the adapter, one without spoken answers neither the TTS adapter nor the audio heads.
Gathering weights and averaging gradients are collective operations, so every process has to do them for the same blocks
and parameters. Those that a batch has not used get a gradient of zero. Where no process has used a parameter in an
optimiser step, its zeros are removed before the step, so that the optimiser leaves it alone as in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from omnikit.model import OmniLM
from omnikit.train.transformer_blocks import blocks_of

_TTS = "tts_adapter"


class UnusedParts:
    """Hooks of a sharded module that give unused parameters a gradient of zero.

    Args:
        root: outermost sharded module, whose `forward` returns the loss.
        model: the model in it.
    """

    def __init__(self, root: FSDPModule, model: OmniLM):
        self.model = model
        blocks = {id(p) for block in blocks_of(model.llm) for p in block.parameters()}
        self.always = {name for name, p in model.named_parameters() if id(p) in blocks}  # every batch uses them
        self.used: set[str] = set()  # names of parameters, and of the TTS adapter, since the last optimiser step
        self.hooked: set[int] = set()
        self.outputs: list[Tensor] = []  # of the backbone's blocks and of the TTS adapter in this forward pass
        model.llm.register_forward_pre_hook(_require_gradient)
        model.llm.register_forward_hook(self._after_blocks)
        if model.tts_adapter is not None:
            model.tts_adapter.register_forward_hook(self._after_tts_adapter)
        root.register_forward_hook(self._after_forward, prepend=True)  # before FSDP prepares the backward pass

    def drop_gradients(self) -> None:
        """Remove the gradients of parameters that no process has used since the last call."""
        parameters = {name: p for name, p in self._trainable() if name not in self.always}
        noted = [_TTS if name.startswith(_TTS) else name for name in parameters]
        used = torch.tensor([name in self.used for name in noted], dtype=torch.int32, device=self.model.device)
        torch.distributed.all_reduce(used, torch.distributed.ReduceOp.MAX)
        for parameter, some in zip(parameters.values(), used.tolist(), strict=True):
            if not some:
                parameter.grad = None
        self.used.clear()

    def _after_blocks(self, _: nn.Module, arguments: Any, output: Tensor) -> None:
        if output.requires_grad:
            self.outputs.append(output)

    def _after_tts_adapter(self, module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        self._after_blocks(module, arguments, output)
        return _NotedUse.apply(output, self.used) if output.requires_grad else output

    def _after_forward(self, _: nn.Module, arguments: Any, loss: Tensor) -> Tensor:
        outputs, self.outputs = self.outputs, []
        if not torch.is_grad_enabled():
            return loss
        for name, parameter in self._trainable():
            if isinstance(parameter, DTensor):  # of a block, which is gathered on its own
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if id(parameter) not in self.hooked:
                self.hooked.add(id(parameter))
                parameter.register_post_accumulate_grad_hook(self._noting(name))
        return _Touched.apply(loss, *outputs)

    def _noting(self, name: str) -> Callable[[Tensor], None]:
        return lambda _: None if name.startswith(_TTS) else self.used.add(name)

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)


class _NotedUse(torch.autograd.Function):
    """The identity on the TTS adapter's output; its backward pass, which runs only where the loss uses it, notes so."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, used: set[str]) -> Tensor:
        ctx.used = used
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.used.add(_TTS)
        return gradient, None


class _Touched(torch.autograd.Function):
    """The identity on a loss; its backward pass gives other tensors gradients of zero."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *outputs: Tensor) -> Tensor:
        ctx.like = [(output.shape, output.dtype, output.device) for output in outputs]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        zeros = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like]
        return gradient, *zeros


def _require_gradient(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Let the backward pass run through the blocks even if nothing before them is trained, or used in this batch."""
    embeddings, *others = arguments
    if torch.is_grad_enabled() and not embeddings.requires_grad:
        embeddings = embeddings.detach().requires_grad_()
    return embeddings, *others
