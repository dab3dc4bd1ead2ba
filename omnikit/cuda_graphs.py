"""Recording of GPU work as CUDA graphs, which replay hundreds of kernels by one launch.

Decode steps and short prefills are recorded by `omnikit/engines/static.py`, pushes to the decode streams of SNAC and
DAC by `omnikit/codecs/joined_streams.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from threading import Lock

import torch
from torch import Tensor

UNRECORDED = 3
"""Number of times that a call runs before it is recorded as a CUDA graph, as in torch's documentation."""
MOST_FAILURES = 8
"""Maximum number of failed attempts to record one call as a CUDA graph.

An attempt fails if another thread waits for the GPU meanwhile.
"""
MOST_FUNCTIONS = 64
"""Maximum number of CUDA graphs of one `RecordedFunction`; calls with further keys run without a graph."""
_RECORDING = Lock()
"""Lock that admits one recording of a CUDA graph at a time per process, as `torch.cuda.graph` requires."""

Call = Callable[[], None]


class CudaGraphs:
    """A recorder of calls as CUDA graphs on one device.

    All its graphs share one memory pool, so only one may be replayed at a time, and tensors that a recorded call
    allocates may be overwritten by the next replay. Calls therefore write their results to tensors that existed before.
    """

    def __init__(self, device: torch.device):
        self.device = device
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()
        self.clear()

    def run(self, call: Call) -> None:
        """Run a call without recording it, on the CUDA stream on which graphs are recorded.

        Libraries set up their state per stream at the first call, which must not be recorded.
        """
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                call()
            current.wait_stream(self.stream)

    def record(self, call: Call) -> Call:
        """Record a call as a CUDA graph without running it; return the function that replays the graph.

        Meanwhile no other thread may wait for the GPU or draw from its default generator, or the recording fails.

        Raises:
            RuntimeError: the recording failed.
        """
        with _RECORDING, torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                call()

        def replay() -> None:
            with torch.cuda.device(self.device):
                graph.replay()

        return replay

    def clear(self) -> None:
        """Use a new memory pool for future CUDA graphs; torch does not reuse a pool whose graphs are all gone."""
        self.pool = torch.cuda.graph_pool_handle()


class GraphRecorder:
    """A cache of CUDA graphs by key: the first `UNRECORDED` calls with a key run normally, later ones replay its graph.

    Runs before a recording are regular calls: a mere warm-up run would change the tensors that the call writes.
    Recording computes nothing and changes no tensor.
    """

    def __init__(self, graphs: CudaGraphs):
        self.graphs = graphs
        self.replays: dict[Hashable, Call] = {}
        self.runs: Counter[Hashable] = Counter()
        self.failures: Counter[Hashable] = Counter()

    def run(self, key: Hashable, call: Call) -> None:
        """Execute a call on the GPU once, by replaying the CUDA graph of its key if there is one.

        Calls with the same key must do the same operations on the same tensors.
        """
        if self.runs[key] < UNRECORDED:
            self.graphs.run(call)
            self.runs[key] += 1
            return
        if key not in self.replays and not self._record(key, call):
            self.graphs.run(call)
            return
        self.replays[key]()

    def _record(self, key: Hashable, call: Call) -> bool:
        """Try to record a call as a CUDA graph, and return whether it succeeded; after a failure the next call retries.

        Raises:
            RuntimeError: recording this key has failed more than `MOST_FAILURES` times.
        """
        try:
            self.replays[key] = self.graphs.record(call)
        except RuntimeError:
            self.failures[key] += 1
            if self.failures[key] > MOST_FAILURES:
                raise
            return False
        return True

    def clear(self) -> None:
        """Delete all CUDA graphs of this cache, because the tensors that they use are being replaced."""
        self.replays.clear()
        self.runs.clear()
        self.graphs.clear()


class RecordedFunction:
    """A cache of tensor functions recorded as CUDA graphs, by key; the caller owns all inputs and outputs.

    Calls with the same key must be of the same function, on tensors of the same shapes. Inputs are copied to the
    tensors that the recording reads, and outputs from those that it writes, by a few kernels for all tensors of a type.
    A function must not wait for the GPU; one that cannot be recorded runs normally.
    """

    def __init__(self, graphs: CudaGraphs):
        self.recorder = GraphRecorder(graphs)
        self.places: dict[Hashable, tuple[list[Tensor], list[Tensor]]] = {}  # the recording's inputs, outputs by key
        self.refused: set[Hashable] = set()

    def takes(self, key: Hashable) -> bool:
        """Return whether calls with a key are replayed from a CUDA graph, or will be after some further calls."""
        return key not in self.refused and (key in self.places or len(self.places) < MOST_FUNCTIONS)

    def __call__(self, key: Hashable, function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> list[Tensor]:
        """Return the outputs of a tensor function for some inputs, computed by its CUDA graph if there is one."""
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
        """Execute a tensor function and copy its outputs to preallocated tensors, which the first call allocates."""
        found = function(*inputs)
        outputs[len(outputs) :] = [torch.empty_like(each) for each in found[len(outputs) :]]
        _copy_all(outputs, found)


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors to others of the same shapes, by one operation for all tensors of the same data type."""
    by_type = defaultdict(list)
    for pair in zip(targets, sources, strict=True):
        if pair[0].numel():
            by_type[pair[0].dtype].append(pair)
    for pairs in by_type.values():
        torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))
