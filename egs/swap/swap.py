"""Swaps parts of a system by name and for user-defined ones: `python swap.py [--steps 120] [--output_folder results]`.

Two systems differ only in adapter, codec and pattern. Each is described, trained to memorise two tunes (the question is
a tune, the answer its name and the same tune), and then asked.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

import omnikit
from omnikit.api import Omni
from omnikit.audio.io import save_audio
from omnikit.data.collate import Batch, collate
from omnikit.describe import describe
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.generate.prompts import encode
from omnikit.losses import label_weights, stream_losses
from omnikit.model import OmniLM
from omnikit.option_ranges import COUNT
from omnikit.tasks import TASKS, make_sample

HERE = Path(__file__).parent
TRAINED = HERE.parent / "mini" / "pretrained"
SYSTEMS = {
    "by_name": {
        "adapter": "concat", "codec": "mel_rvq", "codec.weights": TRAINED / "mel_rvq", "pattern": "parallel",
    },
    "my_own": {"adapter": HERE / "averaging.yaml", "codec": HERE / "whistle.yaml", "pattern": "flattened"},
}  # fmt: skip
SMALL = {
    "llm": "mini", "llm.config.hidden_size": 64, "llm.config.intermediate_size": 128, "llm.config.num_hidden_layers": 2,
    "encoder": "mini", "encoder.weights": TRAINED / "encoder",
}  # fmt: skip
TASK = TASKS["A1A2"]


def tunes(rate: int) -> dict[str, Tensor]:
    """Return two tunes by name as waveforms [N] of eight tones, one rising and one falling, at a sample rate in Hz."""
    time = torch.arange(round(0.08 * rate)) / rate
    tones = {"low": [200 + 50 * n for n in range(8)], "high": [2400 - 150 * n for n in range(8)]}
    return {
        name: torch.cat([0.3 * torch.sin(2 * math.pi * hz * time) for hz in each]) for name, each in tones.items()
    }


def lesson(model: OmniLM, wavs: dict[str, Tensor]) -> Batch:
    """Return a training batch in which each tune is the question, and its name and the tune itself are the answer."""
    with torch.no_grad():
        encoded = encode(model, list(wavs.values()))
    samples = [
        make_sample(
            TASK, model.layout, model.pattern, audio_frames=model.num_speech_positions(len(features)),
            answer=model.llm.tokenizer.encode(name), codes=model.codec.encode(wav[None])[0],
        )
        for (name, wav), features in zip(wavs.items(), encoded, strict=True)
    ]  # fmt: skip
    return collate(samples, encoded, model.layout, model.encoder.dim)


def learn(model: OmniLM, batch: Batch, steps: int) -> list[float]:
    """Train a model on one batch for a number of optimiser steps, and return the loss of each."""
    model.freeze_all_but(["adapter", "llm", "new_text_embeddings", "new_audio_embeddings"])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    weights, losses = label_weights(batch.step_labels, torch.ones(model.layout.num_streams)), []
    for _ in range(steps):
        speech = batch.speech(*model.adapter(batch.features, batch.lengths))
        loss, _ = stream_losses(model, model(batch.steps, speech), batch, weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def _plain(parts: dict) -> dict:
    return {key: str(value) if isinstance(value, Path) else value for key, value in parts.items()}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=COUNT, default=120, help="number of optimiser steps; default: %(default)s")
    parser.add_argument(
        "--output_folder", type=Path, default=HERE / "results", help="folder for answers; default: %(default)s"
    )
    arguments = parser.parse_args()
    arguments.output_folder.mkdir(parents=True, exist_ok=True)
    for title, parts in SYSTEMS.items():
        torch.manual_seed(0)
        model = omnikit.build(**_plain(parts | SMALL))
        print(f"== {title}\n{describe(model)}\n")
        wavs = tunes(model.encoder.sample_rate)
        losses = learn(model, lesson(model, wavs), arguments.steps)
        print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} after {len(losses)} steps")
        for name, wav in wavs.items():
            reply = Omni(model).ask(wav)
            file = arguments.output_folder / f"{title}-{name}.wav"
            save_audio(file, reply.wav, reply.sample_rate)
            print(f"question {name!r}, answer {reply.text!r}, {len(reply.wav) / reply.sample_rate:.2f} s: {file}")
        print()


if __name__ == "__main__":
    with bad_input_exits():
        main()
