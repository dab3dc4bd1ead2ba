"""Data of the encoder's pre-training: which recordings, what is done to them, their phonemes."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
import soxr
import torch
from speechbrain.dataio.dataio import load_data_csv
from speechbrain.dataio.dataset import DynamicItemDataset
from torch import Tensor

from omnikit.data.espeak import phonemes
from omnikit.data.noise import add_noise

SAMPLE_RATE = 16000
BLANK = 0


class Augment:
    """Changes to a training waveform: another size of speaker, noise, silence around it.

    Args:
        noise_prob: share of the recordings that get noise.
        snr_db: range of its level.
        warp_prob: share of the recordings that are resampled.
        warp: by at most this share.
        silence: longest silence put before and after, seconds; noise, where there is some, covers it.
    """

    def __init__(
        self, *, noise_prob: float, snr_db: tuple[float, float], warp_prob: float, warp: float, silence: float
    ):
        self.noise_prob, self.snr_db = noise_prob, snr_db
        self.warp_prob, self.warp, self.silence = warp_prob, warp, silence
        self.rng = np.random.default_rng()

    def __call__(self, wav: np.ndarray) -> np.ndarray:
        """[N] -> [N']."""
        rng = self.rng
        if rng.random() < self.warp_prob:
            rate = SAMPLE_RATE * rng.uniform(1 - self.warp, 1 + self.warp)
            wav = soxr.resample(wav, SAMPLE_RATE, rate, quality="QQ")
        around = rng.integers(0, int(self.silence * SAMPLE_RATE), 2)
        wav = np.pad(wav, tuple(around * (rng.random() < 0.5)))
        if rng.random() < self.noise_prob:
            wav = add_noise(wav, rng.uniform(*self.snr_db), rng)
        return (wav * rng.uniform(0.3, 1.0)).astype(np.float32)


class SpecMask:
    """SpecAugment's masks (Park et al. 2019, section 2) without time warping, drawn per sample."""

    def __init__(self, *, time_masks: int, time_width: int, freq_masks: int, freq_width: int):
        self.along_time, self.along_freq = (time_masks, time_width), (freq_masks, freq_width)

    def __call__(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """[B, n_mels, T] with lengths [B] in frames -> the same with stripes set to zero."""
        hide_time = _stripes(lengths, mel.shape[-1], *self.along_time)
        bands = torch.full_like(lengths, mel.shape[1])
        hide_freq = _stripes(bands, mel.shape[1], *self.along_freq)
        return mel.masked_fill(hide_time[:, None] | hide_freq[:, :, None], 0.0)


def _stripes(lengths: Tensor, size: int, count: int, width: int) -> Tensor:
    """Lengths [B] -> [B, size], True in `count` stripes of 0..width within each length."""
    hidden = torch.zeros(len(lengths), size, dtype=torch.bool)
    position = torch.arange(size)[None]
    for _ in range(count):
        start = (torch.rand(len(lengths)) * lengths).long()[:, None]
        hidden |= (position >= start) & (position < start + torch.randint(0, width + 1, start.shape))
    return hidden


def read_manifest(path: str | Path, share: float = 1.0, seed: int = 1) -> dict[str, dict]:
    """Rows of a CSV manifest as {id: {source, text, duration}}; a random `share` of them."""
    rows = load_data_csv(path)
    names = random.Random(seed).sample(list(rows), round(share * len(rows)))
    return {
        name: {"source": rows[name]["a1"], "text": rows[name]["t1"], "duration": rows[name]["duration"]}
        for name in names
    }


def read_questions(path: str | Path) -> dict[str, dict]:
    """The spoken questions of a QA file as {id: {source, text, duration}}; the sources are FLAC bytes."""
    rows = pq.read_table(path, columns=["id", "t1", "a1"]).to_pylist()
    return {
        f"qa-{row['id']}": {
            "source": row["a1"],
            "text": row["t1"],
            "duration": soundfile.info(io.BytesIO(row["a1"])).duration,
        }
        for row in rows
    }


class Phones:
    """Phoneme symbols and their CTC ids; 0 is the blank."""

    def __init__(self, symbols: list[str]):
        self.symbols = symbols
        self.ids = {symbol: i + 1 for i, symbol in enumerate(symbols)}

    @classmethod
    def of_texts(cls, texts: list[str]) -> Phones:
        return cls(sorted({sound for text in texts for sound in phonemes(text)}))

    def __len__(self) -> int:
        return len(self.symbols) + 1

    def encode(self, text: str) -> list[int]:
        return [self.ids[sound] for sound in phonemes(text)]


def make_dataset(rows: dict[str, dict], phones: Phones, augment: Augment | None = None) -> DynamicItemDataset:
    """Rows of `read_manifest` or `read_questions` -> items with `id`, `wav` [N] and `phones` [L]."""
    targets = {text: phones.encode(text) for text in {row["text"] for row in rows.values()}}

    def wav(source: str | bytes) -> Tensor:
        sound, _ = soundfile.read(io.BytesIO(source) if isinstance(source, bytes) else source, dtype="float32")
        return torch.from_numpy(augment(sound) if augment else sound)

    def ids(text: str) -> Tensor:
        return torch.tensor(targets[text])

    dataset = DynamicItemDataset(rows)
    dataset.add_dynamic_item(wav, takes="source", provides="wav")
    dataset.add_dynamic_item(ids, takes="text", provides="phones")
    dataset.set_output_keys(["id", "wav", "phones"])
    return dataset
