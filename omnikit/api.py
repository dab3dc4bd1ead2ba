"""What a user types: load a system, ask it, let it transcribe, speak and chat."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from omnikit.audio.io import load_audio
from omnikit.engines import AUTO, OF_TORCH, check_engine, load_openvino, open_engine
from omnikit.generate import END, Decoder, Decoding, Question, Request
from omnikit.generate import Chunk as Chunk
from omnikit.generate.request import Chunks
from omnikit.interfaces import Engine
from omnikit.model import OmniLM
from omnikit.strategies import Strategy
from omnikit.streaming import EXACT, check_mode
from omnikit.tasks import TASKS

Audio = str | Path | Tensor
"""A file, or a waveform [N] in -1..1 at the encoder's sample rate."""
FLOAT32 = "float32"
DTYPES = {FLOAT32: torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class StopOptions(TypedDict, total=False):
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


class Omni:
    """A loaded system, ready to answer.

    Any thread may ask. All questions are answered in one batch that is always running: an answer joins it when there is
    room, and leaves it at its end.

    Args:
        model: in evaluation mode.
        decoding: sampling and limits of answers.
        strategy: sequences per question; None = parallel, one sequence.
        engine: computes the steps; None = torch, with the model's own modules.
        capacity: sequences that are decoded together at most; None = `omnikit.generate.running_batch.CAPACITY`.
    """

    def __init__(
        self,
        model: OmniLM,
        *,
        decoding: Decoding | None = None,
        strategy: Strategy | None = None,
        engine: Engine | None = None,
        capacity: int | None = None,
    ):
        given = {"strategy": strategy, "capacity": capacity}
        options = {name: value for name, value in given.items() if value is not None}
        self.decoder = Decoder(model, engine, decoding=decoding or Decoding(), **options)

    @property
    def model(self) -> OmniLM:
        """Network that answers."""
        return self.decoder.model

    @property
    def decoding(self) -> Decoding:
        """Sampling and limits of answers to questions asked from now on."""
        return self.decoder.decoding

    @decoding.setter
    def decoding(self, decoding: Decoding) -> None:
        self.decoder.decoding = decoding

    @property
    def sample_rate(self) -> int:
        """Sample rate of the answers (Hz)."""
        return self.model.codec.sample_rate

    def ask(self, audio: Audio, **stop: Unpack[StopOptions]) -> Reply:
        """Answer a spoken question with text and speech.

        Raises:
            ValueError: the file cannot be read, or is longer than what the encoder hears; the message names it.
            omnikit.generate.QueueFull: too many questions are waiting.
        """
        return self._join(self.stream(audio, **stop))

    def stream(self, audio: Audio, *, mode: str = EXACT, **stop: Unpack[StopOptions]) -> Chunks:
        """Answer as `ask` does, chunk by chunk while the answer is being decoded: the codec is given few frames at
        first, then more at a time. Drop the iterator to have no more, or see `StopOptions`.

        Args:
            mode: of `omnikit.streaming.MODES`. `low_latency` gives sound from the first whole frame on; where it had to
                guess what follows, it differs a little from that of `ask`.

        Raises:
            ValueError: as `ask`; or no such mode.
        """
        return self._chunks("A1A2", self.spoken_question(audio), mode, name=_name(audio), **stop)

    def transcribe(self, audio: Audio, **stop: Unpack[StopOptions]) -> str:
        """Return the transcript of speech."""
        return self.generate_text("A1T1", self.spoken_question(audio), name=_name(audio), **stop).text

    def speak(self, text: str, **stop: Unpack[StopOptions]) -> Reply:
        """Synthesise speech that says a text."""
        return self._join(self.stream_speech(text, **stop))

    def stream_speech(self, text: str, *, mode: str = EXACT, **stop: Unpack[StopOptions]) -> Chunks:
        """Synthesise speech as `speak` does, chunk by chunk, see `stream`."""
        return self._chunks("T1A1", self.written_question(text), mode, **stop)

    def chat(self, text: str, **stop: Unpack[StopOptions]) -> str:
        """Answer a written question in writing."""
        return self.generate_text("T1T2", self.written_question(text), **stop).text

    def answer(self, text: str, **stop: Unpack[StopOptions]) -> Reply:
        """Answer a written question with text and speech."""
        return self._join(self._chunks("T1A2", self.written_question(text), EXACT, **stop))

    def generate_text(
        self, task: str, question: Question, *, name: str | None = None, **stop: Unpack[StopOptions]
    ) -> Reply:
        """Return what `transcribe` (A1T1), `chat` (T1T2) and the task A1T2 write, with the reason why it ended.

        Args:
            task: a name in `omnikit.tasks.TASKS` that does not speak.
            name: of the recording, for errors.
        """
        request = self.submit(task, question, name=name, **stop)
        try:
            found = request.wait()
        except BaseException:  # Ctrl-C among them
            request.cancel()
            raise
        text = self.model.llm.tokenizer.decode(found.text)
        return Reply(text, torch.zeros(0), self.sample_rate, found.end)

    def submit(
        self,
        task: str,
        question: Question,
        *,
        sound: str | None = None,
        name: str | None = None,
        **stop: Unpack[StopOptions],
    ) -> Request:
        """Ask without waiting: the answer grows, see `omnikit.generate.Request`.

        Args:
            task: a name in `omnikit.tasks.TASKS`.
            sound: mode of `omnikit.streaming.MODES` in which the answer's codes become sound; None = they do not.
            name: of the recording, for errors.

        Raises:
            omnikit.generate.QueueFull: too many questions are waiting.
        """
        limit = stop.get("time_limit")
        decoding = self.decoding if limit is None else replace(self.decoding, time_limit=limit)
        options = {"decoding": decoding, "sound": sound, "cancel": stop.get("cancel"), "name": name}
        return self.decoder.submit(TASKS[task], question, **options)

    def spoken_question(self, audio: Audio) -> Question:
        """Turn a recording into a question.

        Raises:
            ValueError: the file cannot be read, or the encoder hears no recording of this length; the message names it.
        """
        wav = audio if isinstance(audio, Tensor) else load_audio(audio, self.model.encoder.sample_rate)
        with suppress(NotImplementedError):  # then it tells when it encodes
            try:
                self.model.encoder.num_frames(wav.shape[0])
            except ValueError as error:
                raise ValueError(f"{_name(audio)}: {error}") from None
        return Question(wav=wav)

    def written_question(self, text: str) -> Question:
        """Turn a text into a question.

        Raises:
            ValueError: no text, or characters that the tokenizer lacks.
        """
        if not text.strip():
            raise ValueError(f"text {text!r}: empty")
        return Question(text=self.model.llm.tokenizer.encode(text))

    def close(self) -> None:
        """End all answers that are under way as cancelled, and the thread that decodes them. The next question starts
        another."""
        self.decoder.close()

    def _chunks(
        self, task: str, question: Question, mode: str, *, name: str | None = None, **stop: Unpack[StopOptions]
    ) -> Chunks:
        check_mode(mode)
        return iter(self.submit(task, question, sound=mode, name=name, **stop))

    def _join(self, chunks: Chunks) -> Reply:
        try:
            pieces = list(chunks)
        except BaseException:  # Ctrl-C among them
            chunks.close()
            raise
        text, wav = "".join(p.text for p in pieces), torch.cat([p.wav for p in pieces])
        return Reply(text, wav, self.sample_rate, pieces[-1].end)


def _name(audio: Audio) -> str:
    return "waveform" if isinstance(audio, Tensor) else str(audio)


def load(
    checkpoint: str | Path | None = None,
    *,
    device: str = "cpu",
    strategy: Strategy | None = None,
    engine: str = AUTO,
    dtype: str = FLOAT32,
) -> Omni:
    """Load a checkpoint folder, or one of the hub by its id; None = the mini system that comes with the package.

    Args:
        engine: computes the steps, a name in `omnikit.engines.ENGINES`, or `auto`; `openvino` needs the CPU.
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
