"""Draws the pictures of the mini system's HTML report, spectrograms and learning curves, as PNG."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import torch
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK, SOFT, TEXT_COLOR = "#20262e", "#6b7685", "#c2410c"
STYLE = {
    "font.size": 9.5,
    "axes.edgecolor": "#c9d0d9",
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8ecf1",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
WIDTH = 10.4  # inches

Logs = dict[str, list[dict]]
"""Mapping from the title of a stage to the lines of its training log."""


def spectrogram(wav: Tensor, sample_rate: int, seconds: float) -> bytes:
    """Return the log spectrogram of a waveform [N] as PNG, with a time axis of at least `seconds`."""
    window = torch.hann_window(400)
    padded = torch.nn.functional.pad(wav, (0, max(0, 800 - len(wav))))
    power = torch.stft(padded, 512, 80, 400, window, return_complex=True).abs().square()
    level = 10 * torch.log10(power + 1e-8).numpy()
    with pyplot.rc_context(STYLE | {"axes.grid": False}):
        figure, axis = pyplot.subplots(figsize=(WIDTH / 2, 2.3))
        axis.set_facecolor("#f3f5f8")
        extent = (0, len(padded) / sample_rate, 0, sample_rate / 2000)
        top = level.max()
        axis.imshow(level, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=top - 70, vmax=top)
        axis.set(xlim=(0, max(seconds, extent[1])), ylim=(0, extent[3]), xlabel="seconds", ylabel="kHz")
        return _png(figure)


def progress(logs: Logs) -> bytes | None:
    """Return curves of the validation error rates in percent over all stages as PNG; None if the logs have none."""
    names = list(dict.fromkeys(k for lines in logs.values() for line in lines for k in line["valid"] if _is_figure(k)))
    if not names:
        return None
    starts, ends = _spans(logs)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(1, len(names), figsize=(WIDTH, 3.0), squeeze=False, sharey=True)
        for axis, name in zip(axes[0], names, strict=True):
            points = [
                (starts[title] + line["step"], line["valid"][name])
                for title, lines in logs.items() for line in lines if name in line["valid"]
            ]  # fmt: skip
            axis.plot(*zip(*points, strict=True), color=TEXT_COLOR, marker="o", markersize=3, linewidth=1.6)
            _write_value(axis, points[-1])
            axis.set(title=_named(name), xlabel="optimiser step", xlim=(0, max(ends.values()) * 1.03))
            axis.locator_params(axis="x", nbins=4)
            _mark_stages(axis, starts, ends)
        axes[0, 0].set(ylabel="%", ylim=(0, 105))
        return _png(figure)


def losses(logs: Logs) -> bytes:
    """Return curves of the loss per stream as PNG, one panel per stage: validation solid, training dashed."""
    count = 1 + max(_streams(lines)[-1] for lines in logs.values())
    colors = [TEXT_COLOR, *pyplot.get_cmap("viridis")(np.linspace(0.05, 0.9, max(1, count - 1)))]
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(1, len(logs), figsize=(WIDTH, 3.4), squeeze=False, sharey=True)
        for axis, (title, lines) in zip(axes[0], logs.items(), strict=True):
            for stream in reversed(_streams(lines)):
                for part, line_style in (("train", "--"), ("valid", "-")):
                    name = _stream_name(stream)
                    points = [(line["step"], line[part][name]) for line in lines if name in line[part]]
                    if points:
                        marker = "o" if part == "valid" else None
                        width = 1.8 if part == "valid" and not stream else 1.0
                        axis.plot(*zip(*points, strict=True), line_style, color=colors[stream], marker=marker,
                                  markersize=2.5, linewidth=width)  # fmt: skip
            axis.set(title=title, xlabel="optimiser step", xlim=(0, None))
            axis.locator_params(axis="x", nbins=5)
        axes[0, 0].set(ylabel="cross-entropy, nats", ylim=(0, None))
        handles = [Line2D([], [], color=color) for color in colors] + [Line2D([], [], color=SOFT, linestyle="--")]
        labels = ["text", *(f"audio {k}" for k in range(1, count)), "in training"]
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), handlelength=1.2)
        return _png(figure)


def _spans(logs: Logs) -> tuple[dict[str, int], dict[str, int]]:
    """Return the first and the last optimiser step of each stage, counted over all stages."""
    starts, ends, done = {}, {}, 0
    for title, lines in logs.items():
        starts[title], done = done, done + lines[-1]["step"]
        ends[title] = done
    return starts, ends


def _write_value(axis, point: tuple[int, float]) -> None:
    where = {"xytext": (0, 7), "textcoords": "offset points", "ha": "right"}
    axis.annotate(f"{point[1]:.1f}", point, color=TEXT_COLOR, **where)


def _mark_stages(axis, starts: dict[str, int], ends: dict[str, int]) -> None:
    for i, title in enumerate(starts):
        if i % 2:
            axis.axvspan(starts[title], ends[title], color="#f3f5f8", zorder=0)
        middle, where = (starts[title] + ends[title]) / 2, axis.get_xaxis_transform()
        axis.text(middle, 0.99, title.split()[-1], transform=where, ha="center", va="top", color=SOFT, fontsize=8)


def _streams(lines: list[dict]) -> list[int]:
    """Return the sorted numbers of the streams that have a loss in a log: 0 for text, 1 and up for audio."""
    names = {name for line in lines for part in ("train", "valid") for name in line[part]}
    audio = {int(name.removeprefix("audio")) for name in names if name.startswith("audio")}
    return sorted(audio | {0} if "text" in names else audio)


def _stream_name(stream: int) -> str:
    return f"audio{stream}" if stream else "text"


def _is_figure(name: str) -> bool:
    return name == "wer" or name.startswith("wrong ")


def _named(name: str) -> str:
    if name == "wer":
        return "Word error rate, %"
    given = {"A1": "spoken", "T1": "written"}[name.removeprefix("wrong ")[:2]]
    return f"Wrong answers, {given} questions, %"


def _png(figure: Figure) -> bytes:
    figure.set_layout_engine("constrained")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    pyplot.close(figure)
    return buffer.getvalue()
