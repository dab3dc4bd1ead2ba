"""What a user types: load a system, ask it, let it transcribe, speak and chat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnikit.audio import load_audio
from omnikit.engines import TORCH, load_with_engine
from omnikit.generate import Decoding, Question, Step, answers, generate, read_codes
from omnikit.model import Engine, OmniLM
from omnikit.strategies import PARALLEL, Strategy
from omnikit.streaming import EXACT, check_mode
from omnikit.tasks import TASKS, Task

Audio = str | Path | Tensor
"""A file, or a waveform [N] in -1..1 at the encoder's sample rate."""
UNFINISHED = "\ufffd"
"""What tokenizers write for bytes that are no character yet."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LONGEST_CHUNK = 8
"""Frames. Chunks grow up to this: the first comes soon, and long ones cost the codec less."""


@dataclass(frozen=True)
class Reply:
    """A spoken answer."""

    text: str
    wav: Tensor  # [N]
    sample_rate: int


@dataclass(frozen=True)
class Chunk:
    """A piece of a spoken answer; text and sound grow together."""

    text: str
    wav: Tensor  # [n]


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

    def ask(self, audio: Audio) -> Reply:
        """A spoken question -> text and speech.

        Raises:
            ValueError: the file cannot be read; the message names it.
        """
        return self._join(self.stream(audio))

    def stream(self, audio: Audio, *, mode: str = EXACT) -> Iterator[Chunk]:
        """As `ask`, piece by piece while it is being decoded: the codec is given 1, 2, 4 .. frames at a time. Drop the
        iterator to stop.

        Args:
            mode: of `omnikit.streaming.MODES`. `low_latency` gives sound from the first whole frame on; where it had to
                guess what follows, it differs a little from that of `ask`.

        Raises:
            ValueError: as `ask`; or no such mode.
        """
        check_mode(mode)
        return self._speak(TASKS["A1A2"], self.hear(audio), mode)

    def transcribe(self, audio: Audio) -> str:
        """Speech -> its text."""
        return self._write(TASKS["A1T1"], self.hear(audio))

    def speak(self, text: str) -> Reply:
        """Text -> speech that says it."""
        return self._join(self.stream_speech(text))

    def stream_speech(self, text: str, *, mode: str = EXACT) -> Iterator[Chunk]:
        """As `speak`, piece by piece, see `stream`."""
        check_mode(mode)
        return self._speak(TASKS["T1A1"], self.read(text), mode)

    def chat(self, text: str) -> str:
        """A written question -> a written answer."""
        return self._write(TASKS["T1T2"], self.read(text))

    def answer(self, text: str) -> Reply:
        """A written question -> text and speech."""
        return self._join(self._speak(TASKS["T1A2"], self.read(text)))

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

    def _write(self, task: Task, question: Question) -> str:
        answer = answers(self.model, task, [question], **self._how())[0]
        return self.model.llm.tokenizer.decode(answer.text)

    def _speak(self, task: Task, question: Question, mode: str = EXACT) -> Iterator[Chunk]:
        voice = _Voice(self.model, mode)
        for step in generate(self.model, task, [question], **self._how()):
            yield voice.push(step)
        yield voice.finish()

    def _how(self) -> dict[str, Any]:
        return {"decoding": self.decoding, "strategy": self.strategy, "engine": self.engine}

    def _join(self, chunks: Iterator[Chunk]) -> Reply:
        pieces = list(chunks)
        return Reply("".join(p.text for p in pieces), torch.cat([p.wav for p in pieces]), self.model.codec.sample_rate)


class _Voice:
    """Emitted steps of one answer -> text and sound as far as they can be given."""

    def __init__(self, model: OmniLM, mode: str):
        self.model, self.codec = model, model.codec.stream(mode=mode)
        self.steps: list[Tensor] = []
        self.ids: list[int] = []
        self.text, self.frames = "", 0
        self.waiting: Tensor | None = None  # codes of frames that are not decoded yet [1, K, t]
        self.chunk = 1  # frames that are waited for

    def push(self, step: Step) -> Chunk:
        self.steps.append(step.tokens[0])
        codes = read_codes(self.model, torch.stack(self.steps, dim=-1)[1:])
        self.waiting = codes[None, :, self.frames :]
        wav = self._decode() if self.waiting.shape[-1] >= self.chunk else torch.zeros(0)
        return Chunk(self._new_text(int(step.tokens[0, 0])), wav)

    def finish(self) -> Chunk:
        rest = self._decode() if self.waiting is not None and self.waiting.shape[-1] else None
        with torch.inference_mode():
            end = self.codec.finish()[0]
        return Chunk(self._grown(), end if rest is None else torch.cat([rest, end.to(rest.device)]))

    def _decode(self) -> Tensor:
        """What waits -> its samples, as far as they can be given [n]."""
        codes, self.waiting = self.waiting, None
        self.frames, self.chunk = self.frames + codes.shape[-1], min(2 * self.chunk, LONGEST_CHUNK)
        with torch.inference_mode():
            return self.codec.push(codes)[0]

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
    dtype: str = "float32",
) -> Omni:
    """Load a checkpoint folder, or one of the hub by its id; None = the mini system that comes with the package.

    Args:
        engine: what computes the steps, a name in `omnikit.engines.ENGINES`; all but `torch` need the CPU.
        dtype: in which `torch` computes all but encoder and codec: float32, bfloat16 or float16.

    Raises:
        ValueError: the folder or a piece of it is missing or does not fit, or the engine cannot run it.
    """
    from omnikit.checkpoint import load as load_checkpoint

    if engine != TORCH and device != "cpu":
        raise ValueError(f"--engine {engine}: runs on the CPU, not on --device {device}")
    if engine == TORCH:
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype}: unknown (choices: {', '.join(DTYPES)})")
        model = load_checkpoint(checkpoint, device=device).to_dtype(DTYPES[dtype])
        return Omni(model, strategy=strategy)
    model, machine = load_with_engine(engine, checkpoint)
    return Omni(model, strategy=strategy, engine=machine)


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
