"""Work on a GPU that is recorded as CUDA graphs and replayed, in place of hundreds of kernels launched one by one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from threading import Lock

import torch
from torch import Tensor

UNRECORDED = 3
"""Runs before one is recorded, as many as torch's documentation of CUDA graphs has before a capture."""
MOST_FAILURES = 8
"""Recordings of one key that may fail, such as when another thread waits for the GPU meanwhile."""
MOST_FUNCTIONS = 64
"""Keys under which one `RecordedFunction` records; further ones run as they are."""
_RECORDING = Lock()
"""One graph is recorded at a time in a process, see `torch.cuda.graph`."""

Call = Callable[[], None]


class CudaGraphs:
    """Records calls on one device. All its graphs share their memory, so that one is replayed at a time, and nothing
    that a call leaves may be read from there afterwards: calls write to tensors that were there before."""

    def __init__(self, device: torch.device):
        self.device = device
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()
        self.forget()

    def run(self, call: Call) -> None:
        """Run a call on the stream that it will be recorded on: what libraries set up at a first call belongs to a
        stream, and must not be recorded."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                call()
            current.wait_stream(self.stream)

    def record(self, call: Call) -> Call:
        """Record a call without running it, and return what replays it.

        Meanwhile no other thread may wait for the GPU or draw from its default generator, or recording fails.
        """
        with _RECORDING, torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                call()

        def replay() -> None:
            with torch.cuda.device(self.device):
                graph.replay()

        return replay

    def forget(self) -> None:
        """Take other memory for the graphs to come; torch does not take up that of graphs which are all gone."""
        self.pool = torch.cuda.graph_pool_handle()


class GraphRecorder:
    """Runs calls by key: the first `UNRECORDED` ones of a key as they are, then they are recorded and replayed.

    The runs before a recording are steps like all others: a run for the mere sake of warming up would change whatever
    the call writes. Recording changes nothing, since nothing is computed meanwhile.
    """

    def __init__(self, graphs: CudaGraphs):
        self.graphs = graphs
        self.replays: dict[Hashable, Call] = {}
        self.runs: Counter[Hashable] = Counter()
        self.failures: Counter[Hashable] = Counter()

    def run(self, key: Hashable, call: Call) -> None:
        """Do once what `call` does, by replaying it if it is recorded; calls of the same key do the same on the same
        tensors."""
        if self.runs[key] < UNRECORDED:
            self.graphs.run(call)
            self.runs[key] += 1
            return
        if key not in self.replays and not self._record(key, call):
            self.graphs.run(call)
            return
        self.replays[key]()

    def _record(self, key: Hashable, call: Call) -> bool:
        """Try to record a call, and return whether that worked: where another thread comes in between, the next call
        tries again."""
        try:
            self.replays[key] = self.graphs.record(call)
        except RuntimeError:
            self.failures[key] += 1
            if self.failures[key] > MOST_FAILURES:
                raise
            return False
        return True

    def forget(self) -> None:
        """Drop all recordings, because the tensors that they work on are gone."""
        self.replays.clear()
        self.runs.clear()
        self.graphs.forget()


class RecordedFunction:
    """Functions of tensors that are recorded by key: the same function, on tensors of the same shapes, for each key.

    Inputs are copied to where the recording reads them, and outputs from where it writes them, by a few kernels for all
    tensors of a type. A function must not wait for the GPU; one that cannot be recorded runs as it is.
    """

    def __init__(self, graphs: CudaGraphs):
        self.recorder = GraphRecorder(graphs)
        self.places: dict[Hashable, tuple[list[Tensor], list[Tensor]]] = {}  # inputs and outputs by key
        self.refused: set[Hashable] = set()

    def takes(self, key: Hashable) -> bool:
        """Return whether calls of a key are recorded or may still be."""
        return key not in self.refused and (key in self.places or len(self.places) < MOST_FUNCTIONS)

    def __call__(self, key: Hashable, function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> list[Tensor]:
        """Return the outputs of a function for inputs that stay as they are."""
        if key in self.places:
            _copy_all(self.places[key][0], inputs)
        else:
            self.places[key] = [each.clone() for each in inputs], []
        try:
            self.recorder.run(key, lambda: self._compute(function, *self.places[key]))
        except RuntimeError:
            self.refused.add(key)
            return function(*inputs)
        outputs = [torch.empty_like(each) for each in self.places[key][1]]
        _copy_all(outputs, self.places[key][1])
        return outputs

    def _compute(self, function: Callable[..., list[Tensor]], inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Compute outputs and copy them to tensors that are there from the first call on."""
        found = function(*inputs)
        outputs[len(outputs) :] = [torch.empty_like(each) for each in found[len(outputs) :]]
        _copy_all(outputs, found)


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors to others of the same shapes; those of a type are copied together."""
    by_type = defaultdict(list)
    for pair in zip(targets, sources, strict=True):
        if pair[0].numel():
            by_type[pair[0].dtype].append(pair)
    for pairs in by_type.values():
        torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))
