"""An engine for CPUs that decodes through OpenVINO with 8-bit matrices, at nearly the bandwidth of the memory.

A model is converted once; its graphs are stored in a folder.

Letters: R sequences, D width, S streams, V ids.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from threading import Lock

import openvino as ov
import torch
from torch import Tensor

from omnikit.engines.openvino_graph import INT8, WEIGHT_BYTES, WEIGHTS, GraphBuilder, attention_window
from omnikit.engines.openvino_slots import CompiledTrunk, OpenVINOSlots
from omnikit.engines.static import unsupported_reason
from omnikit.errors import writing
from omnikit.files import aside_of, remove
from omnikit.interfaces import Engine
from omnikit.model import OmniLM

MADV_DONTNEED = 4  # madvise(2): pages of a mapped file leave memory, and are read again when accessed
GRAPHS = ("blocks", "text_head", "audio_head")
"""File names of a model's OpenVINO graphs; they change with how graphs are built, so that no old file is read."""
SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",  # the default on many CPUs is bf16, which makes decoding with int8 slow
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",
    "KV_CACHE_PRECISION": "f32",
}
"""OpenVINO's properties for compiling a graph."""
_CONVERTING = Lock()
"""Lock that admits one conversion of a model at a time: temporary files are named after the process, not the thread."""


class OpenVINOEngine(Engine):
    """An engine that runs the blocks and both heads as OpenVINO graphs; threads may share it and take turns.

    Args:
        model: model with a backbone of Llama's kind; its weights are read only if the graphs do not exist yet.
        folder: folder of the graphs; missing graphs are written there.
        weights: storage type of matrices, one of `WEIGHTS`.

    Raises:
        ValueError: a backbone of another kind, or an unknown storage type.
    """

    name, parks = "openvino", True

    def __init__(self, model: OmniLM, folder: str | Path, *, weights: str = INT8):
        self.model = model
        window = _window(model)
        files = graph_files(folder, weights)
        if not is_converted(folder, weights=weights):
            convert(model, folder, weights=weights)
        self.weight_bytes = WEIGHT_BYTES[weights]
        settings = {**SETTINGS, "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
        core = ov.Core()
        compiled = {name: core.compile_model(file, "CPU", settings) for name, file in files.items()}
        self.trunk = CompiledTrunk(compiled["blocks"], window)
        self.heads = {name: CompiledHead(compiled[name]) for name in GRAPHS[1:]}
        self._warm_up(files)

    def _warm_up(self, files: dict[str, Path]) -> None:
        """Run each OpenVINO graph once, then drop the files of its weights from memory.

        At its first product OpenVINO copies a matrix to its own layout; without this each matrix would be in memory
        twice.
        """
        one = torch.zeros(1, self.model.llm.dim)
        self.open(1).prefill([one]).advance(1)
        release_memory_of(files["blocks"].with_suffix(".bin"))
        for name, head in self.heads.items():
            head.logits(one)
            release_memory_of(files[name].with_suffix(".bin"))

    def open(self, capacity: int) -> OpenVINOSlots:
        return OpenVINOSlots(self.trunk, capacity)

    def text_logits(self, hidden: Tensor) -> Tensor:
        return self.heads["text_head"].logits(hidden)

    def audio_logits(self, hidden: Tensor) -> Tensor:
        return self.heads["audio_head"].logits(hidden)


class CompiledHead:
    """A head compiled by OpenVINO with one infer request, which threads take turns to use."""

    def __init__(self, compiled: ov.CompiledModel):
        self.request, self.size = compiled.create_infer_request(), compiled.output().partial_shape[1].get_length()
        self.lock = Lock()

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [R, V] of hidden states [R, D]."""
        logits = torch.empty(len(hidden), self.size)
        with self.lock:  # OpenVINO writes to the result itself: copying a large vocabulary's logits takes milliseconds
            self.request.set_output_tensor(ov.Tensor(logits.numpy(), shared_memory=True))
            self.request.infer([hidden.detach().float().contiguous().numpy()], share_inputs=True, share_outputs=True)
        return logits


def graph_files(folder: str | Path, weights: str) -> dict[str, Path]:
    """Return the paths of a model's OpenVINO graphs by name.

    Args:
        folder: folder of the graphs.
        weights: storage type of matrices, one of `WEIGHTS`.

    Raises:
        ValueError: an unknown storage type.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"engine.weights {weights}: unknown (choices: {', '.join(WEIGHTS)})")
    return {name: Path(folder) / f"{name}-{weights}.xml" for name in GRAPHS}


def is_converted(folder: str | Path, *, weights: str = INT8) -> bool:
    """Return whether a folder holds all OpenVINO graphs of a model in a storage type of `WEIGHTS`."""
    return all(file.is_file() for file in graph_files(folder, weights).values())


def convert(model: OmniLM, folder: str | Path, *, weights: str = INT8) -> None:
    """Write the OpenVINO graphs of a model to a folder; each file is written whole or not at all.

    Raises:
        ValueError: a backbone that `omnikit.llms.llama` does not support, or one whose blocks have different windows.
    """
    _window(model)
    with _CONVERTING:
        if not is_converted(folder, weights=weights):  # another thread may have converted it meanwhile
            _convert(model, graph_files(folder, weights), weights)


def _window(model: OmniLM) -> int | None:
    if (reason := unsupported_reason(model)) is not None:
        raise ValueError(f"engine openvino: {reason}")
    return attention_window(model.llm.config)


def _convert(model: OmniLM, files: dict[str, Path], weights: str) -> None:
    folder = files["blocks"].parent
    print(f"openvino: converting the model, once, to {folder}", file=sys.stderr)
    stacks = [(model.llm.trunk, model.llm.norm.weight)]
    if model.tts_adapter is not None:
        stacks.append((model.tts_adapter.trunk, model.tts_adapter.trunk.norm.weight))
    _write(GraphBuilder(weights).trunk(stacks), files["blocks"])
    _write(
        GraphBuilder(weights).head([model.llm.lm_head.weight, model.new_text_embeddings.head.weight]),
        files["text_head"],
    )
    _write(GraphBuilder(weights).head([model.new_audio_embeddings.head.weight]), files["audio_head"])


def _write(graph: ov.Model, file: Path) -> None:
    folder = aside_of(file, of_process=True)
    with writing(file, RuntimeError):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            ov.save_model(graph, folder / file.name, compress_to_fp16=False)
            for suffix in (".bin", ".xml"):  # the .xml is renamed last: it marks a graph as complete
                os.replace((folder / file.name).with_suffix(suffix), file.with_suffix(suffix))
        finally:
            remove(folder)


def release_memory_of(file: Path) -> None:
    """Drop the pages of a memory-mapped file from this process's memory (Linux); they are read again when accessed."""
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        place, _, rest = line.partition(" ")
        if rest.endswith(f" {file.resolve()}"):
            first, end = (int(number, 16) for number in place.split("-"))
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), MADV_DONTNEED)
