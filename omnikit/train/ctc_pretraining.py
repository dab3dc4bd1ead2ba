"""CTC pre-training of a small Whisper-like encoder on phonemes, and the export of its weights."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.metric_stats import ErrorRateStats
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omnikit.data.augment import named_augment
from omnikit.encoders.log_mel import log_mel
from omnikit.encoders.whisper import WhisperEncoder
from omnikit.evaluate.result_tables import markdown_table
from omnikit.files import write_text
from omnikit.hparams import Recipe
from omnikit.interfaces import count_parameters
from omnikit.train.brain import cosine_rate
from omnikit.train.checkpointer import WholeCheckpointer
from omnikit.train.phoneme_dataset import BLANK, Phones, make_dataset
from omnikit.train.resume import RunIdentity, resumes
from omnikit.train.robust_brain import RobustBrain, highest_loss
from omnikit.weights import load_into, save_weights

logger = logging.getLogger(__name__)
HEAD_RATE = 1e-2
"""Learning rate while only the CTC head trains, a linear layer on normalised features."""


class EncoderBrain(RobustBrain):
    """A Brain that trains an encoder with a linear CTC head.

    The encoder gets no gradients for the first `head_only_steps`: those of a random head would damage trained weights.

    Requires in hparams: `encoder`, `mask`, `lr`, `head_only_steps`, `warmup_steps`, `steps` (in total), `log_every` and
    `train_logger`.
    """

    def compute_forward(self, batch, stage):
        wav, relative = batch.wav
        lengths = (relative * wav.shape[1]).round().long()
        mel, frames = log_mel(wav, lengths, self.hparams.encoder.n_mels)
        if stage == sb.Stage.TRAIN:
            mel = self.hparams.mask(mel, frames)
        with torch.set_grad_enabled(stage == sb.Stage.TRAIN and self.optimizer_step >= self.hparams.head_only_steps):
            features, frames = self.modules.encoder.encode_mel(mel, frames)
        return self.modules.head(features).log_softmax(dim=-1), frames

    def compute_objectives(self, predictions, batch, stage):
        log_probs, frames = predictions
        targets, relative = batch.phones
        counts = (relative * targets.shape[1]).round().long()
        loss = nn.functional.ctc_loss(log_probs.transpose(0, 1), targets, frames, counts, BLANK, zero_infinity=True)
        if stage != sb.Stage.TRAIN:
            decoded = greedy(log_probs, frames)
            references = [entry[:n].tolist() for entry, n in zip(targets, counts, strict=True)]
            for name, group, found, wanted in zip(batch.id, batch.group, decoded, references, strict=True):
                self.errors[group].append([name], [found], [wanted])
        return loss

    def on_fit_batch_start(self, batch, should_step):
        rate = self.rate_at(self.optimizer_step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def rate_at(self, step: int) -> float:
        """Return the learning rate at an optimiser step: `HEAD_RATE` at first, then linear warm-up and half a cosine to
        zero."""
        hp = self.hparams
        if step < hp.head_only_steps:
            return HEAD_RATE
        step, total = step - hp.head_only_steps, hp.steps - hp.head_only_steps
        return cosine_rate(step, peak=hp.lr, lowest=0.0, warmup=hp.warmup_steps, total=total)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        if self.usable(loss):
            self.recent.append(loss.item())
        if self.optimizer_step % self.hparams.log_every == 0 and self.recent:
            minutes = (time.monotonic() - self.started) / 60
            mean = sum(self.recent) / len(self.recent)
            rate = self.optimizer.param_groups[0]["lr"]
            self.note(f"step {self.optimizer_step} | {minutes:.1f} min | lr {rate:.2e} | loss per phone {mean:.3f}")
            self.recent.clear()

    def note(self, line: str) -> None:
        """Append a line to the log file without printing it, which would break the progress bar."""
        with open(self.hparams.train_logger.save_file, "a", encoding="utf-8") as file:
            print(line, file=file)

    def on_stage_start(self, stage, epoch=None):
        if stage != sb.Stage.TRAIN:
            self.errors = defaultdict(ErrorRateStats)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            return
        if stage == sb.Stage.VALID:
            self.check_validation()
        rates = {f"PER {split}": stats.summarize("error_rate") for split, stats in sorted(self.errors.items())}
        self.hparams.train_logger.log_stats({"step": self.optimizer_step}, valid_stats={"loss": stage_loss} | rates)
        if stage == sb.Stage.VALID:
            self.save_epoch(rates, num_to_keep=1)


def greedy(log_probs: Tensor, frames: Tensor) -> list[list[int]]:
    """Decode log-probabilities [B, T, V] of lengths [B] by best-path CTC; repeats and blanks are removed."""
    best = log_probs.argmax(dim=-1)
    merged = (torch.unique_consecutive(entry[:n]).tolist() for entry, n in zip(best, frames, strict=True))
    return [[i for i in entry if i != BLANK] for entry in merged]


@torch.no_grad()
def wake_convolutions(encoder: WhisperEncoder, examples: list[Tensor]) -> None:
    """Scale the encoder's two convolutions so that each channel has mean 0 and variance 1 on example waveforms [N].

    With the default initialisation their output varies fifty times less than the position embedding that is added to
    it, so that at first the blocks would receive almost no signal.
    """
    lengths = torch.tensor([len(wav) for wav in examples])
    x, _ = log_mel(pad_sequence(examples, batch_first=True), lengths, encoder.n_mels)
    for conv in (encoder.encoder.conv1, encoder.encoder.conv2):
        out = conv(x)
        mean, std = out.mean(dim=(0, 2)), out.std(dim=(0, 2)).clamp(min=1e-5)
        conv.weight.div_(std[:, None, None])
        conv.bias.copy_((conv.bias - mean) / std)
        x = nn.functional.gelu(conv(x))


def train_encoder(
    recipe: Recipe,
    train_entries: dict[str, dict],
    valid_entries: dict[str, dict],
    *,
    device: str | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> tuple[EncoderBrain, DynamicItemDataset]:
    """Train an encoder by CTC for `steps` optimiser steps, or resume from the last checkpoint in `save_folder`.

    Training starts from the encoder's `weights`, or from random weights if it names none.

    Args:
        recipe: recipe whose hparams hold what `EncoderBrain` requires, and `augment`, `save_folder`, `epoch_counter`,
            `weight_decay`, `grad_clip`, `ckpt_interval_minutes`, `batch_seconds` and `num_buckets` of the batch
            sampler, and its `seed`.
        train_entries: training examples, see `phoneme_dataset.entries_with_phonemes`.
        valid_entries: validation examples, in the same form.
        device: device to train on if the command line names none.
        fixed: further values that must not change when the run is resumed, see `RunIdentity`.

    Returns:
        The Brain and the validation dataset.

    Raises:
        ValueError: `save_folder` holds checkpoints of another run.
    """
    hparams = recipe.hparams
    phones = Phones.of_texts(sorted({entry["text"] for entry in train_entries.values()}))
    train_set = make_dataset(train_entries, phones, named_augment(hparams["augment"]), hparams["seed"])
    by_length = dict(sorted(valid_entries.items(), key=lambda item: item[1]["duration"]))
    valid_set = make_dataset(by_length, phones)
    encoder = hparams["encoder"]
    if encoder.weights is None:
        wake_convolutions(encoder, [valid_set[i]["wav"] for i in range(0, len(valid_set), 40)])
    else:
        encoder.load_weights()
    head = nn.Linear(encoder.dim, len(phones))
    print(f"encoder {count_parameters(encoder):,} parameters, {len(phones) - 1} phonemes, {len(train_set)} recordings")
    modules = {"encoder": encoder, "head": head}
    checkpointer = WholeCheckpointer(hparams["save_folder"], modules | {"epoch_counter": hparams["epoch_counter"]})
    for change in resumes(checkpointer, RunIdentity(recipe, {"phonemes": phones.symbols, **(fixed or {})})):
        logger.warning("resuming: %s", change)
    brain = EncoderBrain(
        modules,
        lambda parameters: torch.optim.AdamW(
            parameters, lr=hparams["lr"], betas=(0.9, 0.98), weight_decay=hparams["weight_decay"]
        ),
        hparams,
        {**({} if device is None else {"device": device}), **recipe.run_opts},
        checkpointer,
    )
    brain.recent, brain.started = [], time.monotonic()
    brain.highest_loss = highest_loss(len(phones))
    brain.optimizer_step_limit = hparams["steps"]
    brain.max_grad_norm = hparams["grad_clip"]
    brain.train_sampler = DynamicBatchSampler(
        train_set, hparams["batch_seconds"], hparams["num_buckets"], seed=hparams["seed"], drop_last=True
    )
    brain.fit(
        hparams["epoch_counter"],
        train_set,
        valid_set,
        train_loader_kwargs={"batch_sampler": brain.train_sampler},
        valid_loader_kwargs={"batch_size": 32},
    )
    return brain, valid_set


def export(brain: EncoderBrain, valid_set: DynamicItemDataset, card: str, **facts: object) -> None:
    """Save the encoder's weights, and a README with the phone error rates of these rounded weights.

    Args:
        brain: Brain that has trained the encoder.
        valid_set: dataset on which the error rates are computed.
        card: template of the README with `{parameters}`, `{steps}`, `{table}` (phone error rates) and keys of `facts`.
        facts: further values for the template.
    """
    encoder, folder = brain.hparams.encoder, Path(brain.hparams.export_folder)
    load_into(encoder, save_weights(encoder, folder))
    brain.checkpointer = None  # or the evaluation would read the unrounded weights back
    brain.evaluate(valid_set, test_loader_kwargs={"batch_size": 32})
    entries = [
        [group, f"{stats.summarize('error_rate'):.1f}", str(len(stats.scores))]
        for group, stats in sorted(brain.errors.items())
    ]
    about = {"parameters": f"{count_parameters(encoder):,}", "steps": brain.optimizer_step}
    text = card.format(**about, table=markdown_table(["split", "PER, %", "recordings"], entries), **facts)
    write_text(folder / "README.md", text)
