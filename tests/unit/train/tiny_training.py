"""Training of milliseconds that saves checkpoints within and after epochs, and functions that damage checkpoints.

Under torchrun, `tiny_training.py FOLDER EPOCHS RESULTS` trains in several processes; each writes its final weights and
optimiser states.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import speechbrain as sb
import torch
import yaml
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from torch import Tensor, nn

from omnikit.train.checkpointer import WholeCheckpointer

EPOCHS, STEPS = 3, 4
FILES = (
    "CKPT.yaml", "SUMS.json", "model.ckpt", "epochs.ckpt", "brain.ckpt", "dataloader-TRAIN.ckpt", "optimizer.ckpt",
)  # fmt: skip
DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": Path.unlink,
    "inverted": lambda path: path.write_bytes(inverted(path.read_bytes())),
}


def inverted(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


class TinyBrain(sb.Brain):
    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        self.checkpointer.save_and_keep_only(meta={"loss": stage_loss}, num_to_keep=self.hparams.num_to_keep)


def train(
    folder: Path, epochs: int = EPOCHS, kind: type[Checkpointer] = WholeCheckpointer, num_to_keep: int = 1
) -> list[Tensor]:
    """Train a tiny model from the newest checkpoint in a folder, or anew; return weights and optimiser states."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    data = torch.utils.data.TensorDataset(torch.randn(2 * STEPS, 4))
    counter = EpochCounter(epochs)
    brain = TinyBrain(
        {"model": model},
        lambda parameters: torch.optim.Adam(parameters, lr=0.1),
        {"num_to_keep": num_to_keep},
        {"device": "cpu", "distributed_backend": "gloo", "ckpt_interval_steps": 3},
        kind(folder, {"model": model, "epochs": counter}),
    )
    brain.fit(counter, data, train_loader_kwargs={"batch_size": 2}, progressbar=False)
    state = [value for each in brain.optimizer.state.values() for value in each.values()]
    return [value.detach().clone() for value in (*model.parameters(), *state)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def checkpoints(folder: Path) -> list[Path]:
    """Return the paths of the checkpoints in a folder, oldest first."""
    return sorted(folder.glob("CKPT*"), key=lambda path: yaml.safe_load((path / "CKPT.yaml").read_text())["unixtime"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sb.utils.distributed.ddp_init_group({"distributed_backend": "gloo"})
    torch.save(train(Path(sys.argv[1]), int(sys.argv[2])), Path(sys.argv[3]) / f"{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()
