"""How fast a system answers on this machine: every piece of an answer timed by itself, and what memory would allow.

The question is noise, and answers are kept from ending, so that a trained and an untrained system do the same work.
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
"""That the codec is given at a time."""
UNTIMED_STEPS = 2
"""Before those that are timed: the one of the prompt, and the next, which may have something to set up."""
READS = 5
MOST_STREAMS = 1024


@dataclass(frozen=True)
class BenchSizes:
    """How much is measured.

    Args:
        seconds: of the question.
        context: position in the middle of the steps that are timed.
        steps: that are timed there.
        frames: of a whole answer.
        answers: whole ones.
        repeats: of all else.
        gib: that are read to learn how fast memory is.
        streams: questions that prefill and the steps decode at a time; all else is of one.
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


def measure(omni: Omni, plan: BenchSizes) -> Figures:
    """Everything in `omnikit.bench.table.ROWS`.

    Raises:
        ValueError: a system that does not hear or does not speak, or a question longer than it hears.
    """
    model, wav = omni.model, noise(omni.model, plan)
    omni = _lasting(omni, model.pattern.num_steps(plan.frames))
    _real_time_factor(omni, wav)  # warms up what the others need, such as the codec for pieces of every size
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
    """The question [N]."""
    samples = int(plan.seconds * model.encoder.sample_rate)
    return torch.randn(samples, generator=torch.Generator().manual_seed(0)) * 0.1


def _lasting(omni: Omni, steps: int) -> Omni:
    """The same system, whose answers last so many steps."""
    decoding = replace(omni.decoding, min_steps=steps, max_steps=steps, time_limit=None)
    return Omni(omni.model, decoding=decoding, strategy=omni.decoder.strategy, engine=omni.decoder.engine)


@torch.inference_mode()
def _encode(model: OmniLM, wav: Tensor) -> Tensor:
    """Encode a waveform [N] to features [T, D]."""
    return encode(model, [wav])[0]


def _decode(omni: Omni, asked: list[Question], steps: int, strategy: Strategy) -> list[float]:
    """Time each decode step of some answers, without their sound; the first includes the prefill."""
    batch = omni.decoder.batch(len(asked) * len(strategy.text_only))
    for question in asked:
        decoding = _lasting(omni, steps).decoding
        batch.submit(omni.decoder.request(TASKS["A1A2"], question, decoding=decoding, strategy=strategy))
    taken = []
    while batch.busy:
        began = time.perf_counter()
        batch.turn()
        if not taken:  # a GPU is at the first step still
            _finish(omni.model.device)
        taken.append(time.perf_counter() - began)
    return taken


def _step_times(omni: Omni, plan: BenchSizes, strategy: Strategy) -> list[float]:
    model = omni.model
    heard = plan.context - plan.steps // 2 - (prompt_length(0) + UNTIMED_STEPS - 1)
    asked = Question(features=torch.randn(heard * model.adapter.stride, model.encoder.dim))
    return _decode(omni, [asked] * plan.streams, UNTIMED_STEPS + plan.steps, strategy)[UNTIMED_STEPS:]


def _codec_pusher(model: OmniLM) -> Callable[[], Any]:
    """What gives the codec further frames of one stream."""
    shape = (1, model.codec.num_codebooks, CODEC_FRAMES)
    codes = torch.randint(0, model.codec.codebook_size, shape, device=model.device)
    stream = model.codec.stream()
    return torch.inference_mode()(lambda: stream.push(codes))


def _first_sound(omni: Omni, wav: Tensor) -> Tensor:
    return next(chunk.wav for chunk in omni.stream(wav, mode=LOW_LATENCY) if len(chunk.wav))


def _real_time_factor(omni: Omni, wav: Tensor) -> float:
    chunks = Watched(omni.stream(wav))
    samples = sum(len(chunk.wav) for chunk in chunks)
    return real_time_factor(chunks, samples, omni.model)


def real_time_factor(steps: Watched, samples: int, model: OmniLM) -> float:
    """Seconds that a second of sound took, from the step on in which its first frame begins to be whole: what comes
    before would count the more, the shorter an answer is.

    Args:
        steps: watched until the sound was there.
        samples: of the sound.
    """
    begin = max(0, model.pattern.num_steps(1) - 1 - model.pattern.stride)
    return (steps.until_now() - steps.came[begin]) * model.codec.sample_rate / samples


class Watched:
    """Items of an iterator, and in seconds how long each took (`taken`) and when it came (`came`)."""

    def __init__(self, items: Iterator[Any]):
        self.items, self.began = iter(items), time.perf_counter()
        self.taken: list[float] = []
        self.came: list[float] = []

    def __iter__(self) -> Watched:
        return self

    def __next__(self) -> Any:
        asked = self.until_now()
        item = next(self.items)
        self.came.append(self.until_now())
        self.taken.append(self.came[-1] - asked)
        return item

    def until_now(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.began

    def through(self) -> Watched:
        """To the end, the items dropped."""
        for _ in self:
            pass
        return self


def timed(call: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Seconds of some calls."""
    taken = []
    for _ in range(repeats):
        _finish(device)
        began = time.perf_counter()
        call()
        _finish(device)
        taken.append(time.perf_counter() - began)
    return taken


def _finish(device: torch.device) -> None:
    """Wait for what a GPU was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_figures(step_bytes: int, step_times: list[float], plan: BenchSizes, device: torch.device) -> Figures:
    """Peak memory; what a step reads, how fast that could be, and what part of this speed a step reaches."""
    peak = _peak_gib(device)  # before more is taken
    bandwidth = median(_read_bandwidth(plan.gib, device))
    floor = step_bytes / 1e9 / bandwidth
    return {
        "peak_gib": [peak],
        "step_gb": [step_bytes / 1e9],
        "gb_per_s": [bandwidth],
        "percent_of_floor": [100 * floor / median(step_times)],
    }


def _peak_gib(device: torch.device) -> float:
    """Of this process so far: on a GPU what torch took there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _read_bandwidth(gib: float, device: torch.device) -> list[float]:
    """GB/s of some reads of so much memory."""
    data = torch.ones(int(gib * 2**30) // 4, device=device)
    data.sum()
    return [data.nbytes / 1e9 / seconds for seconds in timed(data.sum, READS, device)]


def weights_per_step(model: OmniLM) -> int:
    """Weights that a step reads: of embedding tables it reads a few rows only, unless they are heads, too."""
    parts = [
        part
        for part in (model.llm, model.tts_adapter, model.new_text_embeddings, model.new_audio_embeddings)
        if part is not None
    ]
    modules = [module for part in parts for module in part.modules() if not isinstance(module, nn.Embedding)]
    read = {weight for module in modules for weight in module.parameters(recurse=False)}
    return sum(weight.numel() for weight in read)
