"""Freezing: which parts of a system are trained. A recipe's `trainable` lists them; all others keep their weights."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from omnikit.old_names import pointer

FIXED = ("encoder", "codec")
"""Names of the parts that are never trained, since training reads their output as data."""


class Freezable(nn.Module):
    """A system of named parts, each of which is trained or frozen as a whole."""

    part_names: tuple[str, ...] = ()
    """Names of all parts that a system of this class may have."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen: tuple[str, ...] = ()

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Return the system's parts by name, leaving out those that it does not have."""

    def freeze_all_but(self, trainable: list[str]) -> None:
        """Train only the named parts; all others are frozen and stay in evaluation mode whatever `train` says.

        Raises:
            ValueError: a name is not a part, or names a part in `FIXED`.
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
        """Set the training mode of all modules, but keep frozen parts in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self
