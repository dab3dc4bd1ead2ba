"""Pre-train the mini encoder: CTC on the phonemes of the mini corpus.

    python train_encoder.py hparams/encoder.yaml [--steps 2400] [--output_folder DIR] ...

Resumes from its last checkpoint. At the end the encoder's weights are written to `export_folder`, with a card.
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from pathlib import Path

import speechbrain as sb
import torch
from corpus_plan import RANDOM_CHAPTER
from encoder_data import BLANK, Phones, make_dataset, read_manifest, read_questions
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.metric_stats import ErrorRateStats
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omnikit.data.corpus import prepare
from omnikit.encoders.whisper import WhisperEncoder, log_mel
from omnikit.interfaces import count_parameters
from omnikit.weights import load_into, save_weights

sys.path.append(str(Path(__file__).resolve().parents[2] / "recipes" / "LibriSpeech"))
from prepare import CORPUS

VALID_SPLITS = ("dev-clean", "test-clean", "test-other")
CARD = """# The mini encoder

What: openai-whisper's `AudioEncoder`, 192 wide, 4 blocks, {parameters:,} parameters, unpadded input, 50 features/s
(`hparams/encoder/mini.yaml`). `model.safetensors` holds the weights in bf16.

How it was trained: from nothing by `python train_encoder.py hparams/encoder.yaml` in `egs/mini`, {steps} steps of CTC
on phonemes, on `train-clean`, a part of `train-voice` and the training questions of the mini corpus, all of it
synthetic speech of espeak-ng; with noise, resampling, silence and masks on log-mel.

Phone error rate of these weights, greedy decoding with the CTC head (which is not kept). The references are American
phonemes whatever the accent of the voice; the voices of `test-other` (with noise) and `questions-unseen` were never
trained on.

| split | PER, % | recordings |
|---|---|---|
{rows}

For: the mini corpus and experiments around it. Human voices were never heard in training.
"""


class EncoderBrain(sb.Brain):
    """CTC over the encoder's features."""

    def compute_forward(self, batch, stage):
        wav, relative = batch.wav
        lengths = (relative * wav.shape[1]).round().long()
        mel, frames = log_mel(wav, lengths, self.hparams.encoder.n_mels)
        if stage == sb.Stage.TRAIN:
            mel = self.hparams.mask(mel, frames)
        features, frames = self.modules.encoder.encode_mel(mel, frames)
        return self.modules.head(features).log_softmax(dim=-1), frames

    def compute_objectives(self, predictions, batch, stage):
        log_probs, frames = predictions
        targets, relative = batch.phones
        counts = (relative * targets.shape[1]).round().long()
        loss = nn.functional.ctc_loss(log_probs.transpose(0, 1), targets, frames, counts, BLANK, zero_infinity=True)
        if stage != sb.Stage.TRAIN:
            decoded = greedy(log_probs, frames)
            references = [row[:n].tolist() for row, n in zip(targets, counts, strict=True)]
            for name, found, wanted in zip(batch.id, decoded, references, strict=True):
                self.errors[group_of(name)].append([name], [found], [wanted])
        return loss

    def on_fit_batch_start(self, batch, should_step):
        rate = self.rate_at(self.optimizer_step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def rate_at(self, step: int) -> float:
        """Warm up linearly, then a half cosine to zero at the last step."""
        hp = self.hparams
        if step < hp.warmup_steps:
            return hp.lr * (step + 1) / hp.warmup_steps
        done = min(1.0, (step - hp.warmup_steps) / max(1, hp.steps - hp.warmup_steps))
        return hp.lr * 0.5 * (1 + math.cos(math.pi * done))

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.recent.append(loss.item())
        if self.optimizer_step % self.hparams.log_every == 0 and self.recent:
            minutes = (time.monotonic() - self.started) / 60
            mean = sum(self.recent) / len(self.recent)
            rate = self.optimizer.param_groups[0]["lr"]
            self.note(f"step {self.optimizer_step} | {minutes:.1f} min | lr {rate:.2e} | loss per phone {mean:.3f}")
            self.recent.clear()

    def note(self, line: str) -> None:
        """A line for the log that does not break the progress bar."""
        with open(self.hparams.train_logger.save_file, "a", encoding="utf-8") as file:
            print(line, file=file)

    def on_stage_start(self, stage, epoch=None):
        if stage != sb.Stage.TRAIN:
            self.errors = defaultdict(ErrorRateStats)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            return
        rates = {f"PER {split}": stats.summarize("error_rate") for split, stats in sorted(self.errors.items())}
        self.hparams.train_logger.log_stats({"step": self.optimizer_step}, valid_stats={"loss": stage_loss} | rates)
        if stage == sb.Stage.VALID:
            self.checkpointer.save_and_keep_only(meta=rates, num_to_keep=1)


def group_of(name: str) -> str:
    """The split that stands in an id, random word strings apart."""
    split, _, recording = name.partition("/")
    return f"{split}, random words" if recording.split("-")[1] == str(RANDOM_CHAPTER) else split


def greedy(log_probs: Tensor, frames: Tensor) -> list[list[int]]:
    """Log-probabilities [B, T, V] and lengths [B] -> the best path's symbols, repeats and blanks taken out."""
    best = log_probs.argmax(dim=-1)
    merged = (torch.unique_consecutive(row[:n]).tolist() for row, n in zip(best, frames, strict=True))
    return [[i for i in row if i != BLANK] for row in merged]


@torch.no_grad()
def wake_convolutions(encoder: WhisperEncoder, mel: Tensor) -> None:
    """Scale the two convolutions so that each channel has mean 0 and variance 1 on log-mel [B, n_mels, T].

    With the default initialisation their output varies fifty times less than the position embedding that is added to
    it: at first the blocks would hear next to nothing.
    """
    x = mel
    for conv in (encoder.encoder.conv1, encoder.encoder.conv2):
        out = conv(x)
        mean, std = out.mean(dim=(0, 2)), out.std(dim=(0, 2)).clamp(min=1e-5)
        conv.weight.div_(std[:, None, None])
        conv.bias.copy_((conv.bias - mean) / std)
        x = nn.functional.gelu(conv(x))


def read_data(hparams: dict) -> dict[str, dict]:
    """Manifests, made if need be -> rows {id: ...} of `train` and `valid`, ids with the split in front."""
    splits = ["train-clean", "train-voice", *VALID_SPLITS]
    data, folder = Path(hparams["data_folder"]), Path(hparams["manifests"])
    for summary in prepare(CORPUS, data / "corpus", folder, splits):
        print(summary)
    share = {"train-voice": hparams["voice_share"]}
    rows = {split: read_manifest(folder / f"{split}.csv", share.get(split, 1.0)) for split in splits}
    rows["questions"] = read_questions(data / "qa" / "train.parquet")
    rows["questions-unseen"] = read_questions(data / "qa" / "test_unseen.parquet")
    named = {split: {f"{split}/{name}": row for name, row in of.items()} for split, of in rows.items()}
    train = {k: v for split in ("train-clean", "train-voice", "questions") for k, v in named[split].items()}
    valid = {k: v for split in (*VALID_SPLITS, "questions-unseen") for k, v in named[split].items()}
    return {"train": train, "valid": dict(sorted(valid.items(), key=lambda item: item[1]["duration"]))}


def train(hparams: dict, run_opts) -> tuple[EncoderBrain, DynamicItemDataset]:
    """Fit until `steps` are done; the Brain and the data that it was validated on."""
    rows = read_data(hparams)
    phones = Phones.of_texts(sorted({row["text"] for row in rows["train"].values()}))
    train_set = make_dataset(rows["train"], phones, hparams["augment"])
    valid_set = make_dataset(rows["valid"], phones)
    encoder = hparams["encoder"]
    examples = [valid_set[i]["wav"] for i in range(0, len(valid_set), 40)]
    lengths = torch.tensor([len(wav) for wav in examples])
    wake_convolutions(encoder, log_mel(pad_sequence(examples, batch_first=True), lengths, encoder.n_mels)[0])
    head = nn.Linear(encoder.dim, len(phones))
    print(f"encoder {count_parameters(encoder):,} parameters, {len(phones) - 1} phonemes, {len(train_set)} recordings")
    modules = {"encoder": encoder, "head": head}
    checkpointer = sb.utils.checkpoints.Checkpointer(
        hparams["save_folder"], modules | {"epoch_counter": hparams["epoch_counter"]}
    )
    brain = EncoderBrain(
        modules,
        lambda parameters: torch.optim.AdamW(
            parameters, lr=hparams["lr"], betas=(0.9, 0.98), weight_decay=hparams["weight_decay"]
        ),
        hparams,
        run_opts,
        checkpointer,
    )
    brain.recent, brain.started = [], time.monotonic()
    brain.optimizer_step_limit = hparams["steps"]
    brain.max_grad_norm, brain.ckpt_interval_minutes = hparams["grad_clip"], hparams["ckpt_interval_minutes"]
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


def export(brain: EncoderBrain, valid_set: DynamicItemDataset) -> None:
    """Write the encoder's weights, and a card with what these very weights reach."""
    encoder, folder = brain.hparams.encoder, Path(brain.hparams.export_folder)
    load_into(encoder, save_weights(encoder, folder))
    brain.checkpointer = None  # or the evaluation would read the unrounded weights back
    brain.evaluate(valid_set, test_loader_kwargs={"batch_size": 32})
    rows = [
        f"| {group} | {stats.summarize('error_rate'):.1f} | {len(stats.scores)} |"
        for group, stats in sorted(brain.errors.items())
    ]
    card = CARD.format(parameters=count_parameters(encoder), steps=brain.optimizer_step, rows="\n".join(rows))
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    path, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    with open(path, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    torch.manual_seed(hparams["seed"])
    sb.create_experiment_directory(hparams["output_folder"], path, overrides)
    export(*train(hparams, run_opts))
    print(f"weights and card written to {hparams['export_folder']}")


if __name__ == "__main__":
    main()
