"""Measurement of a system on this machine: each stage of an answer timed by itself, and the memory's bandwidth.

The question is noise and answers are kept from ending, so that trained and untrained systems do the same work.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from omnikit.api import Omni
from omnikit.audio.io import MAX_SECONDS
from omnikit.bench.table import Figures
from omnikit.generate import Question
from omnikit.generate.prompts import encode
from omnikit.model import OmniLM
from omnikit.option_ranges import Range
from omnikit.strategies import BATCH_PARALLEL, PARALLEL, Strategy
from omnikit.streaming import LOW_LATENCY
from omnikit.tasks import TASKS, prompt_length

CODEC_FRAMES = 4
"""Number of frames that the codec decodes in each timed call."""
UNTIMED_STEPS = 2
"""Number of decode steps before the timed ones: the first includes the prefill, the second may be slower, too."""
READS = 5
"""Number of timed reads with which the memory bandwidth is measured."""
MOST_STREAMS = 1024
"""Maximum number of questions that are decoded at a time."""


@dataclass(frozen=True)
class BenchSizes:
    """Sizes of a system's measurements (question, answers, streams), and how often each is repeated.

    Args:
        seconds: length of the question in seconds.
        context: position in the middle of the timed decode steps.
        steps: number of timed decode steps.
        frames: number of frames of a whole answer.
        answers: number of whole answers.
        repeats: number of repeats of all other measurements.
        gib: GiB of memory that are read to measure its bandwidth.
        streams: number of questions that are prefilled and decoded at a time; all other measurements are of one.

    Raises:
        ValueError: `seconds` or `streams` is out of range.
    """

    seconds: float = 3.0
    context: int = 200
    steps: int = 21
    frames: int = 60
    answers: int = 7
    repeats: int = 7
    gib: float = 2.0
    streams: int = 1

    def __post_init__(self) -> None:
        Range(0, MAX_SECONDS, above=True).check("seconds", self.seconds)
        Range(1, MOST_STREAMS, whole=True).check("streams", self.streams)


QUICK = BenchSizes(steps=7, frames=11, answers=1, repeats=2, gib=0.2)
"""Sizes and numbers of repeats with which `omnikit bench --quick` measures."""


def measure(omni: Omni, plan: BenchSizes) -> Figures:
    """Measure the times, memory and bandwidth of a system that the keys of `omnikit.bench.table.ROWS` name.

    Raises:
        ValueError: a system that takes no speech or does not speak, or a question longer than its encoder takes.
    """
    model, wav = omni.model, noise(omni.model, plan)
    omni = _lasting(omni, model.pattern.num_steps(plan.frames))
    _real_time_factor(omni, wav)  # warms up the other measurements, such as the codec for chunks of every size
    asked = Question(features=_encode(model, wav))
    figures = {
        "encode": timed(lambda: _encode(model, wav), plan.repeats, model.device),
        "prefill": [_decode(omni, [asked] * plan.streams, 1, PARALLEL)[0] for _ in range(plan.repeats)],
        "step": _step_times(omni, plan, PARALLEL),
        "step_batch_parallel": _step_times(omni, plan, BATCH_PARALLEL),
        "codec": timed(_codec_pusher(model), plan.repeats, model.device),
        "first_sound": timed(lambda: _first_sound(omni, wav), plan.repeats, model.device),
        "real_time_factor": [_real_time_factor(omni, wav) for _ in range(plan.answers)],
    }
    weight_bytes = omni.decoder.engine.weight_bytes
    return {**figures, **memory_figures(weight_bytes * weights_per_step(model), figures["step"], plan, model.device)}


def noise(model: OmniLM, plan: BenchSizes) -> Tensor:
    """Return noise [N] at the encoder's sample rate as the spoken question, the same on every call."""
    samples = int(plan.seconds * model.encoder.sample_rate)
    return torch.randn(samples, generator=torch.Generator().manual_seed(0)) * 0.1


def _lasting(omni: Omni, steps: int) -> Omni:
    """Return a system with the same model and engine whose answers take exactly `steps` decode steps."""
    decoding = replace(omni.decoding, min_steps=steps, max_steps=steps, time_limit=None)
    return Omni(omni.model, decoding=decoding, strategy=omni.decoder.strategy, engine=omni.decoder.engine)


@torch.inference_mode()
def _encode(model: OmniLM, wav: Tensor) -> Tensor:
    """Encode a waveform [N] to features [T, D]."""
    return encode(model, [wav])[0]


def _decode(omni: Omni, asked: list[Question], steps: int, strategy: Strategy) -> list[float]:
    """Return the seconds of each decode step of answers without waveforms; the first includes the prefill."""
    batch = omni.decoder.batch(len(asked) * len(strategy.text_only))
    for question in asked:
        decoding = _lasting(omni, steps).decoding
        batch.submit(omni.decoder.request(TASKS["A1A2"], question, decoding=decoding, strategy=strategy))
    taken = []
    while batch.busy:
        began = time.perf_counter()
        batch.turn()
        if not taken:  # a GPU has not finished the first step yet
            _finish(omni.model.device)
        taken.append(time.perf_counter() - began)
    return taken


def _step_times(omni: Omni, plan: BenchSizes, strategy: Strategy) -> list[float]:
    model = omni.model
    given = plan.context - plan.steps // 2 - (prompt_length(0) + UNTIMED_STEPS - 1)
    asked = Question(features=torch.randn(given * model.adapter.stride, model.encoder.dim))
    return _decode(omni, [asked] * plan.streams, UNTIMED_STEPS + plan.steps, strategy)[UNTIMED_STEPS:]


def _codec_pusher(model: OmniLM) -> Callable[[], Any]:
    """Return a function that decodes the next `CODEC_FRAMES` frames of one stream."""
    shape = (1, model.codec.num_codebooks, CODEC_FRAMES)
    codes = torch.randint(0, model.codec.codebook_size, shape, device=model.device)
    stream = model.codec.stream()
    return torch.inference_mode()(lambda: stream.push(codes))


def _first_sound(omni: Omni, wav: Tensor) -> Tensor:
    return next(chunk.wav for chunk in omni.stream(wav, mode=LOW_LATENCY) if len(chunk.wav))


def _real_time_factor(omni: Omni, wav: Tensor) -> float:
    chunks = TimedIterator(omni.stream(wav))
    samples = sum(len(chunk.wav) for chunk in chunks)
    return real_time_factor(chunks, samples, omni.model)


def real_time_factor(steps: TimedIterator, samples: int, model: OmniLM) -> float:
    """Return the seconds of computing per second of generated speech, without what precedes the first frame.

    Timing starts at the first step that may complete a frame: the steps before it would count more, the shorter an
    answer.

    Args:
        steps: timed decode steps, up to the end of the answer.
        samples: number of samples of the answer.
        model: model with the pattern and the codec's sample rate.
    """
    begin = max(0, model.pattern.num_steps(1) - 1 - model.pattern.stride)
    return (steps.until_now() - steps.came[begin]) * model.codec.sample_rate / samples


class TimedIterator:
    """An iterator that times the items of another one.

    Attributes:
        taken: seconds that each item took.
        came: seconds from the construction to each item.
    """

    def __init__(self, items: Iterator[Any]):
        self.items, self.began = iter(items), time.perf_counter()
        self.taken: list[float] = []
        self.came: list[float] = []

    def __iter__(self) -> TimedIterator:
        return self

    def __next__(self) -> Any:
        asked = self.until_now()
        item = next(self.items)
        self.came.append(self.until_now())
        self.taken.append(self.came[-1] - asked)
        return item

    def until_now(self) -> float:
        """Return the seconds since this iterator was constructed."""
        return time.perf_counter() - self.began

    def through(self) -> TimedIterator:
        """Exhaust the iterator, discarding its items, and return it."""
        for _ in self:
            pass
        return self


def timed(call: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Return the seconds that each of several repeated calls takes, until the device has finished."""
    taken = []
    for _ in range(repeats):
        _finish(device)
        began = time.perf_counter()
        call()
        _finish(device)
        taken.append(time.perf_counter() - began)
    return taken


def _finish(device: torch.device) -> None:
    """Wait until a GPU has finished the work that was submitted to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_figures(step_bytes: int, step_times: list[float], plan: BenchSizes, device: torch.device) -> Figures:
    """Return measurements of memory: peak, bytes per decode step, bandwidth, and how near a decode step comes to it.

    Args:
        step_bytes: bytes that a decode step reads.
        step_times: seconds of each decode step.
    """
    peak = _peak_gib(device)  # before the bandwidth measurement allocates more
    bandwidth = median(_read_bandwidth(plan.gib, device))
    floor = step_bytes / 1e9 / bandwidth
    return {
        "peak_gib": [peak],
        "step_gb": [step_bytes / 1e9],
        "gb_per_s": [bandwidth],
        "percent_of_floor": [100 * floor / median(step_times)],
    }


def _peak_gib(device: torch.device) -> float:
    """Return the peak memory of this process in GiB; on a GPU, the peak of torch's tensors there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _read_bandwidth(gib: float, device: torch.device) -> list[float]:
    """Return the memory bandwidth in GB/s measured in each of several reads of `gib` GiB."""
    data = torch.ones(int(gib * 2**30) // 4, device=device)
    data.sum()
    return [data.nbytes / 1e9 / seconds for seconds in timed(data.sum, READS, device)]


def weights_per_step(model: OmniLM) -> int:
    """Return the number of weights that a decode step reads; embedding tables count only if they are heads, too."""
    parts = [
        part
        for part in (model.llm, model.tts_adapter, model.new_text_embeddings, model.new_audio_embeddings)
        if part is not None
    ]
    modules = [module for part in parts for module in part.modules() if not isinstance(module, nn.Embedding)]
    read = {weight for module in modules for weight in module.parameters(recurse=False)}
    return sum(weight.numel() for weight in read)
