"""Freezing: which parts of a system train. A recipe's `trainable` lists them; all others stay as they are."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from omnikit.old_names import pointer

FIXED = ("encoder", "codec")
"""Parts that never train, since to training their output is data."""


class Freezable(nn.Module):
    """A system of named parts that are trained or frozen as a whole."""

    part_names: tuple[str, ...] = ()
    """All parts that there may be."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen: tuple[str, ...] = ()

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Return the parts by name, without those that this system does not have."""

    def freeze_all_but(self, trainable: list[str]) -> None:
        """Train the named parts alone. The others are frozen, and in evaluation mode whatever `train` says.

        Raises:
            ValueError: a name that is no part, or a part whose output is data here.
        """
        choices = [part for part in self.part_names if part not in FIXED]
        if wrong := sorted(set(trainable) - set(choices)):
            why = "stays frozen: to training its output is data" if wrong[0] in FIXED else "no such part"
            raise ValueError(f"trainable: {wrong[0]}: {why}{pointer(wrong[0])}; choices: {', '.join(choices)}")
        for name, module in self.parts().items():
            module.requires_grad_(name in trainable)
        self.frozen = tuple(name for name in self.parts() if name not in trainable)
        self.train()

    def train(self, mode: bool = True) -> Freezable:
        """Set the training mode as every module does, but keep frozen parts in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self
