"""Steps on a CPU by OpenVINO, with matrices of 8 bits: about as fast as memory can be read.

A model is converted once; the graphs lie in a folder from then on.

Letters: B rows, L new positions, C positions with those before, D width, S streams, V ids.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from torch import Tensor

from omnikit.engines.openvino_graph import INT8, WEIGHT_BYTES, WEIGHTS, GraphBuilder, attention_window
from omnikit.errors import writing
from omnikit.files import remove
from omnikit.model import Hidden, OmniLM, Speech

FORBIDDEN = -1e9
"""Added to the scores of positions that must not be attended to."""
MADV_DONTNEED = 4  # madvise(2): for pages of a file, they are forgotten, and read again if touched
GRAPHS = ("trunk", "text_head", "audio_head")
SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",  # the default on many CPUs is bf16, which makes decoding with int8 slow
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",
}


class OpenVINOEngine:
    """An `Engine`.

    Args:
        model: embeds steps and says how the rest looks; its backbone is of Llama's kind.
        folder: where the graphs are, or will be if they are not.
        weights: how matrices are stored, one of `WEIGHTS`.

    Raises:
        ValueError: a backbone of another kind, or no such way to store matrices.
    """

    def __init__(self, model: OmniLM, folder: str | Path, *, weights: str = INT8):
        self.model, self.sizes = model, model.layout.sizes[1:]
        self.window = attention_window(model.llm.config)
        files = graph_files(folder, weights)
        if not is_converted(folder, weights=weights):
            convert(model, folder, weights=weights)
        self.weight_bytes = WEIGHT_BYTES[weights]
        settings = {**SETTINGS, "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
        core = ov.Core()
        compiled = {name: core.compile_model(file, "CPU", settings) for name, file in files.items()}
        self.trunk = compiled["trunk"]
        self.heads = {name: compiled[name].create_infer_request() for name in GRAPHS[1:]}
        self._begin(files)

    def _begin(self, files: dict[str, Path]) -> None:
        """OpenVINO lays matrices out for its products at the first of them; what it read them from is let go then, or
        each would be in memory twice."""
        with torch.inference_mode():
            one = torch.zeros(1, self.model.layout.num_streams, 1, dtype=torch.long)
            self(one, positions=one[:, 0], mask=torch.ones(1, 1), cache=self.new_cache())
        let_go(files["trunk"].with_suffix(".bin"))
        for name, request in self.heads.items():
            request.infer([np.zeros((1, self.model.llm.dim), np.float32)])
            let_go(files[name].with_suffix(".bin"))

    def __call__(
        self, steps: Tensor, speech: Speech | None = None, *, positions: Tensor, mask: Tensor, cache: OpenVINOCache
    ) -> Hidden:
        embedded = self.model.embed(steps, speech).float()
        inputs = {
            "x": embedded.numpy(),
            "positions": positions.contiguous().numpy(),
            "mask": _scores(mask, steps.shape[2], self.window).numpy(),
            "rows": cache.take_rows(len(steps)),
        }
        # the request's memory is used again by its next call
        found = [torch.from_numpy(np.array(array)) for array in cache.request.infer(inputs).values()]
        return Hidden(found[0], found[-1])

    def new_cache(self) -> OpenVINOCache:
        return OpenVINOCache(self.trunk.create_infer_request())

    def text_logits(self, hidden: Tensor) -> Tensor:
        return self._head("text_head", hidden)

    def audio_logits(self, hidden: Tensor) -> list[Tensor]:
        return list(self._head("audio_head", hidden).split(self.sizes, dim=-1))

    def _head(self, name: str, hidden: Tensor) -> Tensor:
        return torch.from_numpy(np.array(self.heads[name].infer([hidden.contiguous().numpy()])[0]))


class OpenVINOCache:
    """Keys and values, kept inside a request."""

    def __init__(self, request: ov.InferRequest):
        self.request = request
        self.request.reset_state()
        self.selected: np.ndarray | None = None

    def select(self, rows: Tensor) -> None:
        """As `omnikit.model.Cache.select`; once between two steps."""
        self.selected = rows.numpy().astype(np.int32)

    def take_rows(self, rows: int) -> np.ndarray:
        """For each row of the next call [B], which of the rows of the last one it goes on."""
        taken = np.arange(rows, dtype=np.int32) if self.selected is None else self.selected
        self.selected = None
        return taken


def graph_files(folder: str | Path, weights: str) -> dict[str, Path]:
    """Where a model's graphs are kept.

    Raises:
        ValueError: no such way to store matrices.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"engine.weights {weights}: unknown (choices: {', '.join(WEIGHTS)})")
    return {name: Path(folder) / f"{name}-{weights}.xml" for name in GRAPHS}


def is_converted(folder: str | Path, *, weights: str = INT8) -> bool:
    """Whether the graphs are there."""
    return all(file.is_file() for file in graph_files(folder, weights).values())


def convert(model: OmniLM, folder: str | Path, *, weights: str = INT8) -> None:
    """Write a model's graphs, each whole or not at all.

    Raises:
        ValueError: a backbone of another kind than `omnikit.engines.openvino_graph.KINDS`.
    """
    attention_window(model.llm.config)
    files = graph_files(folder, weights)
    print(f"openvino: converting the model, once, to {folder}", file=sys.stderr)
    stacks = [(model.llm.trunk, model.llm.norm.weight)]
    if model.tts_adapter is not None:
        stacks.append((model.tts_adapter.trunk, model.tts_adapter.trunk.norm.weight))
    _write(GraphBuilder(weights).trunk(stacks), files["trunk"])
    _write(GraphBuilder(weights).head([model.llm.lm_head.weight, model.text_rows.head.weight]), files["text_head"])
    _write(GraphBuilder(weights).head([model.audio_rows.head.weight]), files["audio_head"])


def _write(graph: ov.Model, file: Path) -> None:
    aside = file.with_suffix(f".{os.getpid()}.xml")
    asides = aside.with_suffix(".bin"), aside
    with writing(file, RuntimeError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            ov.save_model(graph, aside, compress_to_fp16=False)
            for each in asides:  # a graph is there when its .xml is; that is written last
                os.replace(each, file.with_suffix(each.suffix))
        except BaseException:
            for each in asides:
                remove(each)
            raise


def let_go(file: Path) -> None:
    """Take what this process has mapped of a file out of its memory, on Linux; it is read again where it is needed."""
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        place, _, rest = line.partition(" ")
        if rest.endswith(f" {file.resolve()}"):
            first, end = (int(number, 16) for number in place.split("-"))
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), MADV_DONTNEED)


def _scores(mask: Tensor, new: int, window: int | None) -> Tensor:
    """Mask [B, C], 1 where a position may be attended to -> what the scores of the last `new` get [B, 1, new, C].

    Written out for each row: OpenVINO may broadcast one row's to the others wrongly in bf16.
    """
    ages = torch.arange(mask.shape[1])[-new:, None] - torch.arange(mask.shape[1])
    near = (ages >= 0) & (ages < (window or mask.shape[1]))
    return torch.where(near[None] & (mask[:, None] > 0), 0.0, FORBIDDEN)[:, None].contiguous()
