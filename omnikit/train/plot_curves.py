"""Plot of training and validation curves from a run's `train_log.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path

from omnikit.files import whole_file


def read_log(path: str | Path) -> list[dict]:
    """Return the parsed lines of a `train_log.jsonl`, one dict per epoch."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def draw_curves(log: str | Path, picture: str | Path) -> None:
    """Plot loss per stream (validation solid, training dashed) and figures such as WER over optimiser steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_log(log)
    steps = [line["step"] for line in lines]
    streams = [k for k in lines[-1]["valid"] if k == "text" or k.startswith("audio")]
    others = [k for k in lines[-1]["valid"] if k not in (*streams, "loss", "tasks")]
    figure, axes = pyplot.subplots(1, 2 if others else 1, figsize=(11 if others else 6, 4), squeeze=False)
    for k, name in enumerate(streams):
        color = pyplot.get_cmap("viridis")(k / max(1, len(streams)))
        axes[0, 0].plot(steps, [line["valid"].get(name) for line in lines], color=color, label=name, marker=".")
        axes[0, 0].plot(steps, [line["train"].get(name) for line in lines], color=color, linestyle="--", alpha=0.5)
    axes[0, 0].set(xlabel="optimiser step", ylabel="cross-entropy (nats)", title="loss per stream (dashed: training)")
    for name in others:
        axes[0, 1].plot(steps, [line["valid"].get(name) for line in lines], label=name, marker=".")
    if others:
        axes[0, 1].set(xlabel="optimiser step", ylabel="%", title="validation", ylim=(0, None))
    for axis in axes[0]:
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.suptitle(", ".join(f"{kind} {name}" for kind, name in lines[-1]["parts"].items()), fontsize=8)
    figure.tight_layout()
    with whole_file(picture) as aside:
        figure.savefig(aside, dpi=110, format=Path(picture).suffix[1:])
    pyplot.close(figure)
