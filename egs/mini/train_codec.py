"""Trains a codec of the mini system on the recordings of the answer voice.

    python train_codec.py hparams/codec_mel_rvq.yaml [--data_folder DIR] ...
    python train_codec.py hparams/codec_snac_mini.yaml ...

`mel_rvq` is fitted in a minute. `snac_mini` is trained in two phases: first all of it, then the decoder alone with
frozen encoder and codebooks. Its training resumes from the last checkpoint, and `--codec.weights FILE` starts it from
given weights. At the end the weights are written to `export_folder`.
"""

from __future__ import annotations

import logging
import math
import random
import time
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import ReproducibleRandomSampler
from torch import Tensor
from tqdm import tqdm

from omnikit.audio.io import load_audio
from omnikit.data.find_files import visible
from omnikit.errors import bad_input_exits, full_disk_names
from omnikit.hparams import Recipe, load_recipe
from omnikit.interfaces import Codec, count_parameters
from omnikit.option_ranges import COUNT, FROM_ZERO, NOT_NEGATIVE, PATH, POSITIVE, SEED, Range, check_ranges
from omnikit.train.checkpointer import WholeCheckpointer
from omnikit.train.codec_losses import quantise, revive_unused, start_from_data
from omnikit.train.resume import RunIdentity, resumes
from omnikit.train.robust_brain import RobustBrain
from omnikit.weights import save_weights

logger = logging.getLogger(__name__)
VALID_CROPS = 32
RANGES = {
    **dict.fromkeys(("data_folder", "output_folder", "export_folder", "save_folder"), PATH),
    "seed": SEED,
    **dict.fromkeys(("recordings", "max_patches", "rounds"), COUNT),
    **dict.fromkeys(("epochs", "epoch_steps", "batch_size", "crop_frames", "start_crops", "revive_every"), COUNT),
    "joint_epochs": FROM_ZERO,
    "lr": POSITIVE,
    "warmup_share": Range(0, 1, above=True),
    **dict.fromkeys(("grad_clip", "quantiser_weight", "optimizer.weight_decay"), NOT_NEGATIVE),
}
"""Mapping from dotted keys of a codec's recipe to the values that they accept."""


class SnacBrain(RobustBrain):
    """SpeechBrain's brain for training SNAC by reconstruction; after `joint_epochs` only the decoder is trained."""

    def compute_forward(self, batch, stage):
        wav = batch.wav.data
        snac = self.modules.codec.snac
        with torch.set_grad_enabled(self.joint and stage == sb.Stage.TRAIN):
            self.latent = snac.encoder(wav[:, None])
            quantised, loss, codes = quantise(snac, self.latent)
        self.codes = codes
        return snac.decoder(quantised)[:, 0], loss

    def compute_objectives(self, predictions, batch, stage):
        wav, quantiser_loss = predictions
        spectral = self.hparams.spectral_loss(wav, batch.wav.data)
        loss = spectral + self.hparams.quantiser_weight * quantiser_loss if self.joint else spectral
        if self.usable(loss):
            self._note_used(self.codes)
            self.sums += torch.tensor([spectral.item(), quantiser_loss.item(), 1.0])
        return loss

    @property
    def joint(self) -> bool:
        return self.epoch <= self.hparams.joint_epochs

    def _note_used(self, codes: list[Tensor]) -> None:
        size = self.modules.codec.codebook_size
        for used, chosen in zip(self.used, codes, strict=True):
            used += torch.bincount(chosen.flatten().cpu(), minlength=size)

    def on_stage_start(self, stage, epoch=None):
        self.epoch = epoch
        self.sums = torch.zeros(3)
        codec = self.modules.codec
        self.used = [torch.zeros(codec.codebook_size, dtype=torch.int64) for _ in codec.snac.vq_strides]

    def on_fit_batch_start(self, batch, should_step):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate_at(self.epoch, self.step)

    def rate_at(self, epoch: int, step: int) -> float:
        """Return the learning rate of an optimiser step: in each phase a linear warm-up, then cosine decay to a
        twentieth."""
        hp = self.hparams
        first, last = (1, hp.joint_epochs) if epoch <= hp.joint_epochs else (hp.joint_epochs + 1, hp.epochs)
        done = ((epoch - first) * hp.epoch_steps + step) / ((last - first + 1) * hp.epoch_steps)
        warm = min(1.0, done / hp.warmup_share)
        return hp.lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        due = self.step % self.hparams.revive_every == 0
        if due and self.joint and self.epoch < self.hparams.joint_epochs and self.usable(loss):
            revive_unused(self.modules.codec.snac, self.latent.detach(), [used > 0 for used in self.used])
            for used in self.used:
                used.zero_()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        spectral, quantiser = (self.sums[:2] / self.sums[2]).tolist()
        stats = {"spectral": spectral, "quantiser": quantiser}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        self.check_validation()
        stats["codes_used"] = [int((used > 0).sum()) for used in self.used]
        meta = {"epoch": epoch, "minutes": round((time.monotonic() - self.started) / 60, 1)}
        self.hparams.train_logger.log_stats(meta, train_stats=self.train_stats, valid_stats=stats)
        self.save_epoch({"spectral": spectral}, num_to_keep=1)


def recordings(folder: str | Path) -> list[Path]:
    """Return the sorted paths of the FLAC files below the folder of a split.

    Raises:
        ValueError: there are no such files.
    """
    files = sorted(visible(Path(folder), "**/*.flac"))
    if not files:
        raise ValueError(f"--data_folder: no flac files below {folder}")
    return files


def crops(files: list[Path], samples: int, sample_rate: int, seed: int | None = None) -> DynamicItemDataset:
    """Return a data set of crops [samples] of recordings, at random positions.

    Args:
        seed: makes the position in each file the same at every access; None = a new position each time.
    """

    def crop(path: str) -> Tensor:
        wav = load_audio(path, sample_rate)
        rng = random if seed is None else random.Random(f"{seed} {path}")
        start = rng.randint(0, max(0, len(wav) - samples))
        piece = wav[start : start + samples]
        return torch.nn.functional.pad(piece, (0, samples - len(piece)))

    data = {path.stem: {"path": str(path)} for path in files}
    item = {"func": crop, "takes": "path", "provides": "wav"}
    return DynamicItemDataset(data, dynamic_items=[item], output_keys=["id", "wav"])


def train_snac(recipe: Recipe) -> None:
    hparams = recipe.hparams
    codec, folder = hparams["codec"], Path(hparams["data_folder"]) / "corpus"
    samples = hparams["crop_frames"] * codec.frame_samples
    train_set = crops(recordings(folder / "train-voice"), samples, codec.sample_rate)
    valid_set = crops(recordings(folder / "dev-voice")[:VALID_CROPS], samples, codec.sample_rate, seed=0)
    modules = {"codec": codec}
    checkpointer = WholeCheckpointer(hparams["save_folder"], modules | {"epoch_counter": hparams["epoch_counter"]})
    for change in resumes(checkpointer, RunIdentity(recipe, {})):
        logger.warning("resuming: %s", change)
    begins = checkpointer.find_checkpoint() is None
    if begins and codec.weights is not None:
        codec.load_weights()
    elif begins:
        some = torch.randperm(len(train_set))[: hparams["start_crops"]].tolist()
        start_from_data(codec.snac, torch.stack([train_set[i]["wav"] for i in some]), hparams["seed"])
    brain = SnacBrain(modules, hparams["optimizer"], hparams, recipe.run_opts, checkpointer)
    brain.started = time.monotonic()
    brain.max_grad_norm = hparams["grad_clip"]
    draws = hparams["epoch_steps"] * hparams["batch_size"]
    brain.train_sampler = ReproducibleRandomSampler(
        train_set, seed=hparams["seed"], num_samples=draws, replacement=True
    )
    brain.fit(
        hparams["epoch_counter"],
        train_set,
        valid_set,
        train_loader_kwargs={"sampler": brain.train_sampler, "batch_size": hparams["batch_size"]},
        valid_loader_kwargs={"batch_size": 16},
    )


def fit_mel_rvq(hparams: dict) -> None:
    codec, folder = hparams["codec"], Path(hparams["data_folder"]) / "corpus" / "train-voice"
    files = recordings(folder)
    files = random.Random(hparams["seed"]).sample(files, min(len(files), hparams["recordings"]))
    wavs = [load_audio(path, codec.sample_rate) for path in tqdm(files, desc="recordings")]
    left = codec.fit(wavs, rounds=hparams["rounds"], max_patches=hparams["max_patches"], seed=hparams["seed"])
    for number, share in enumerate(left, start=1):
        print(f"codebook {number}: {100 * share:.1f} % of the variance left")


def make(recipe: Recipe) -> Codec:
    """Train or fit the codec that a recipe describes, and return it."""
    codec = recipe.hparams["codec"]
    if hasattr(codec, "fit"):
        fit_mel_rvq(recipe.hparams)
    else:
        print(f"{count_parameters(codec):,} parameters, {codec.frame_rate} frames/s, {codec.num_codebooks} codes each")
        train_snac(recipe)
    return codec


def main() -> None:
    recipe = load_recipe(check=lambda tree: check_ranges(tree, RANGES))
    hparams = recipe.hparams
    torch.manual_seed(hparams["seed"])
    random.seed(hparams["seed"])
    with full_disk_names(hparams["output_folder"]):
        sb.create_experiment_directory(hparams["output_folder"])
        codec = make(recipe)
    print(f"weights written to {save_weights(codec, hparams['export_folder'])}")


if __name__ == "__main__":
    with bad_input_exits():
        main()
