"""What a user types: load a system, ask it, let it transcribe, speak and chat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from omnikit.audio import load_audio
from omnikit.engines import OF_TORCH, TORCH, check_engine, load_openvino, open_engine
from omnikit.generate import END, Decoding, Generation, Question, Step, answers, generate, read_frames
from omnikit.model import Engine, OmniLM
from omnikit.strategies import PARALLEL, Strategy
from omnikit.streaming import EXACT, check_mode
from omnikit.tasks import TASKS

Audio = str | Path | Tensor
"""A file, or a waveform [N] in -1..1 at the encoder's sample rate."""
UNFINISHED = "\ufffd"
"""What tokenizers write for bytes that are no character yet."""
FLOAT32 = "float32"
DTYPES = {FLOAT32: torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LONGEST_CHUNK = 8
"""Frames. Chunks grow up to this: the first comes soon, and long ones cost the codec less."""


class Stop(TypedDict, total=False):
    """What may stop an answer before its end. What was decoded until then is given, and stays as it is."""

    cancel: Event | None
    """Where it is set, by whatever thread, no further step begins."""
    time_limit: float | None
    """Seconds of decoding, those of the prompt included; None = as `Omni.decoding` says."""


@dataclass(frozen=True)
class Reply:
    """An answer."""

    text: str
    wav: Tensor  # [N], N = 0 where it is a written one
    sample_rate: int
    end: str = END
    """Why it ended, one of `omnikit.generate.ENDS`."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a spoken answer; text and sound grow together."""

    text: str
    wav: Tensor  # [n], on the CPU
    end: str | None = None
    """Of the last one: why the answer ended, one of `omnikit.generate.ENDS`."""


class Omni:
    """A loaded system, ready to answer.

    Args:
        model: in evaluation mode.
        decoding: how answers are sampled.
        strategy: how many rows decode one question; None = parallel, one row.
        engine: what computes the steps; None = the model.
    """

    def __init__(
        self,
        model: OmniLM,
        *,
        decoding: Decoding | None = None,
        strategy: Strategy | None = None,
        engine: Engine | None = None,
    ):
        self.model, self.engine = model, engine
        self.decoding = decoding or Decoding()
        self.strategy = strategy or PARALLEL

    @property
    def sample_rate(self) -> int:
        """Of the answers (Hz)."""
        return self.model.codec.sample_rate

    def ask(self, audio: Audio, **stop: Unpack[Stop]) -> Reply:
        """A spoken question -> text and speech.

        Raises:
            ValueError: the file cannot be read, or is longer than what the encoder hears; the message names it.
        """
        return self._join(self.stream(audio, **stop))

    def stream(self, audio: Audio, *, mode: str = EXACT, **stop: Unpack[Stop]) -> Iterator[Chunk]:
        """As `ask`, piece by piece while it is being decoded: the codec is given 1, 2, 4 .. frames at a time. Drop the
        iterator to have no more, or see `Stop`.

        Args:
            mode: of `omnikit.streaming.MODES`. `low_latency` gives sound from the first whole frame on; where it had to
                guess what follows, it differs a little from that of `ask`.

        Raises:
            ValueError: as `ask`; or no such mode.
        """
        return self._speak("A1A2", self.hear(audio), mode, **stop)

    def transcribe(self, audio: Audio, **stop: Unpack[Stop]) -> str:
        """Speech -> its text."""
        return self.write("A1T1", self.hear(audio), **stop).text

    def speak(self, text: str, **stop: Unpack[Stop]) -> Reply:
        """Text -> speech that says it."""
        return self._join(self.stream_speech(text, **stop))

    def stream_speech(self, text: str, *, mode: str = EXACT, **stop: Unpack[Stop]) -> Iterator[Chunk]:
        """As `speak`, piece by piece, see `stream`."""
        return self._speak("T1A1", self.read(text), mode, **stop)

    def chat(self, text: str, **stop: Unpack[Stop]) -> str:
        """A written question -> a written answer."""
        return self.write("T1T2", self.read(text), **stop).text

    def answer(self, text: str, **stop: Unpack[Stop]) -> Reply:
        """A written question -> text and speech."""
        return self._join(self._speak("T1A2", self.read(text), EXACT, **stop))

    def write(self, task: str, question: Question, **stop: Unpack[Stop]) -> Reply:
        """What `transcribe` (A1T1), `chat` (T1T2) and the task A1T2 write, with the reason why it ended.

        Args:
            task: a name in `omnikit.tasks.TASKS` that does not speak.
        """
        found = answers(self.model, TASKS[task], [question], **self._how(**stop))[0]
        return Reply(self.model.llm.tokenizer.decode(found.text), torch.zeros(0), self.sample_rate, found.end)

    def hear(self, audio: Audio) -> Question:
        """A question for `omnikit.generate` from speech."""
        wav = audio if isinstance(audio, Tensor) else load_audio(audio, self.model.encoder.sample_rate)
        wav = wav.to(self.model.device)
        try:
            with torch.inference_mode():
                features, lengths = self.model.encoder(wav[None], torch.tensor([wav.shape[0]], device=wav.device))
        except ValueError as error:  # what the encoder refuses, it cannot name
            raise ValueError(f"{'waveform' if isinstance(audio, Tensor) else audio}: {error}") from None
        return Question(features=features[0, : int(lengths[0])])

    def read(self, text: str) -> Question:
        """A question for `omnikit.generate` from text.

        Raises:
            ValueError: no text, or characters that the tokenizer lacks.
        """
        if not text.strip():
            raise ValueError(f"text {text!r}: empty")
        return Question(text=self.model.llm.tokenizer.encode(text))

    def _speak(self, task: str, question: Question, mode: str, **stop: Unpack[Stop]) -> Iterator[Chunk]:
        check_mode(mode)
        return self._chunks(generate(self.model, TASKS[task], [question], **self._how(**stop)), mode)

    def _chunks(self, steps: Generation, mode: str) -> Iterator[Chunk]:
        voice = _Voice(self.model, mode)
        for step in steps:
            yield voice.push(step)
        yield replace(voice.finish(), end=steps.ends[0])

    def _how(self, *, cancel: Event | None = None, time_limit: float | None = None) -> dict[str, Any]:
        decoding = self.decoding if time_limit is None else replace(self.decoding, time_limit=time_limit)
        return {"decoding": decoding, "strategy": self.strategy, "engine": self.engine, "cancel": cancel}

    def _join(self, chunks: Iterator[Chunk]) -> Reply:
        pieces = list(chunks)
        text, wav = "".join(p.text for p in pieces), torch.cat([p.wav for p in pieces])
        return Reply(text, wav, self.sample_rate, pieces[-1].end)


class _Voice:
    """Emitted steps of one answer -> text and sound as far as they can be given."""

    def __init__(self, model: OmniLM, mode: str):
        self.model, self.codec = model, model.codec.stream(mode=mode)
        self.steps: list[Tensor] = []  # audio rows of those that the next frame needs, each [S - 1]
        self.ids: list[int] = []
        self.text = ""
        self.waiting: list[Tensor] = []  # codes of frames that are not decoded yet, each [K, t]
        self.chunk = 1  # frames that are waited for
        self.silent = False  # from here on

    def push(self, step: Step) -> Chunk:
        self.steps.append(step.tokens[0, 1:])
        self._take_frames()
        wav = self._decode() if sum(codes.shape[1] for codes in self.waiting) >= self.chunk else torch.zeros(0)
        return Chunk(self._new_text(int(step.tokens[0, 0])), wav)

    def finish(self) -> Chunk:
        rest = self._decode() if self.waiting else torch.zeros(0)
        with torch.inference_mode():
            end = self.codec.finish()[0].cpu()
        return Chunk(self._grown(), torch.cat([rest, end]))

    def _take_frames(self) -> None:
        """Frames that have become complete; what is left of the steps is again a prefix of the pattern's."""
        pattern = self.model.pattern
        complete = pattern.num_frames(len(self.steps))
        if complete and not self.silent:
            frames = read_frames(self.model, torch.stack(self.steps, dim=-1))
            self.silent = frames.ended
            self.waiting += [frames.codes] if frames.codes.shape[1] else []
        del self.steps[: complete * pattern.stride]

    def _decode(self) -> Tensor:
        """What waits -> its samples, as far as they can be given [n]."""
        codes, self.waiting = torch.cat(self.waiting, dim=1), []
        self.chunk = min(2 * self.chunk, LONGEST_CHUNK)
        with torch.inference_mode():
            return self.codec.push(codes[None])[0].cpu()

    def _new_text(self, token: int) -> str:
        """A character of several pieces is held back until it is whole."""
        if token >= self.model.layout.text_vocab:
            return ""
        self.ids.append(token)
        return "" if self.model.llm.tokenizer.decode(self.ids).endswith(UNFINISHED) else self._grown()

    def _grown(self) -> str:
        """A piece may change how the text before it is written, so all of it is decoded and the growth given out."""
        whole = self.model.llm.tokenizer.decode(self.ids)
        new, self.text = whole[len(self.text) :], whole
        return new


def load(
    checkpoint: str | Path | None = None,
    *,
    device: str = "cpu",
    strategy: Strategy | None = None,
    engine: str = TORCH,
    dtype: str = FLOAT32,
) -> Omni:
    """Load a checkpoint folder, or one of the hub by its id; None = the mini system that comes with the package.

    Args:
        engine: what computes the steps, a name in `omnikit.engines.ENGINES`; `openvino` needs the CPU.
        dtype: in which engines of torch compute all but encoder and codec: float32, bfloat16 or float16.

    Raises:
        ValueError: the folder or a piece of it is missing or does not fit, or the engine cannot run it.
    """
    from omnikit.checkpoint import load as load_checkpoint

    check_engine(engine)
    if engine in OF_TORCH:
        model = load_checkpoint(checkpoint, device=device, dtype=dtype_named(dtype))
        return Omni(model, strategy=strategy, engine=open_engine(engine, model))
    if device != "cpu":
        raise ValueError(f"--engine {engine}: runs on the CPU, not on --device {device}")
    if dtype != FLOAT32:
        raise ValueError(f"dtype {dtype}: is for {', '.join(OF_TORCH)}; {engine} stores weights in its own way")
    model, machine = load_openvino(checkpoint)
    return Omni(model, strategy=strategy, engine=machine)


def dtype_named(name: str) -> torch.dtype:
    """Of `DTYPES`.

    Raises:
        ValueError: another name.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype {name}: unknown (choices: {', '.join(DTYPES)})")
    return DTYPES[name]


def build(
    *, pretrained: bool = False, size: str | None = None, tts_blocks: int | None = None, **parts: object
) -> OmniLM:
    """A system from parts by name, untrained as a whole: `build(codec="mel_rvq", pattern="flattened")`.

    Args:
        pretrained: let each part read the weights that its `weights` option names. Otherwise only those named here are
            read, and an `llm` chosen by name has the tokenizer `bytes` unless `llm.tokenizer` is named.
        size: `tiny` builds every part that can be with few and narrow layers; None = as the part files say.
        tts_blocks: blocks of the TTS adapter.
        parts: kind = name; or an option of a part, with its dots: `**{"codec.num_codebooks": 4}`.

    Raises:
        ValueError: an unknown name or option.
    """
    from omnikit.hparams import KINDS, build_parts

    names = {key: str(value) for key, value in parts.items() if key in KINDS}
    options = {key: value for key, value in parts.items() if key not in KINDS}
    options["pretrained"] = pretrained
    if size is not None:
        options["size"] = size
    if tts_blocks is not None:
        options["model.tts_blocks"] = tts_blocks
    model = build_parts(names, options)["model"]
    model.load_weights()
    return model.eval()
