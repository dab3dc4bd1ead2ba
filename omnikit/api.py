"""The Python API: load a system, ask it a question, transcribe, synthesise speech and chat."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from omnikit.audio.io import load_audio, name_of
from omnikit.conversation import Conversation
from omnikit.engines import AUTO, TORCH_ENGINES, check_engine, load_openvino, open_engine
from omnikit.generate import END, Decoder, Decoding, History, Question, Request
from omnikit.generate import Chunk as Chunk
from omnikit.generate.history import Turn
from omnikit.generate.request import Chunks
from omnikit.interfaces import Engine
from omnikit.model import OmniLM
from omnikit.strategies import Strategy
from omnikit.streaming import EXACT, check_mode
from omnikit.tasks import TASKS

Audio = str | Path | Tensor
"""Speech as the API takes it: the path of a file, or a waveform [N] in -1..1 at the encoder's sample rate."""
FLOAT32 = "float32"
DTYPES = {FLOAT32: torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class StopOptions(TypedDict, total=False):
    """Keyword arguments that set when an answer ends early; the text and sound decoded until then are returned."""

    cancel: Event | None
    """Event that cancels the answer: once any thread has set it, no further decode step begins."""
    time_limit: float | None
    """Maximum number of seconds spent on an answer, prefill included; None = the limit in `Omni.decoding`."""


@dataclass(frozen=True)
class Reply:
    """An answer as text and waveform."""

    text: str
    wav: Tensor  # [N] in -1..1, N = 0 for an answer without speech
    sample_rate: int
    end: str = END
    """Reason why the answer ended, one of `omnikit.generate.ENDS`."""


class Omni:
    """A loaded system that answers questions; any thread may call it.

    All questions are answered in one running batch: an answer joins it when a slot is free and leaves it when it ends.

    Args:
        model: network in evaluation mode.
        decoding: sampling options and limits of answers.
        strategy: decoding strategy, which sets the number of sequences per question; None = `parallel`, one sequence.
        engine: implementation that computes the decode steps; None = torch, with the model's own modules.
        capacity: maximum number of sequences decoded together; None = `omnikit.generate.running_batch.CAPACITY`.
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
        """Speech language model that generates the answers."""
        return self.decoder.model

    @property
    def decoding(self) -> Decoding:
        """Sampling options and limits of the answers to all questions asked from now on."""
        return self.decoder.decoding

    @decoding.setter
    def decoding(self, decoding: Decoding) -> None:
        self.decoder.decoding = decoding

    @property
    def sample_rate(self) -> int:
        """Sample rate of the generated speech (Hz)."""
        return self.model.codec.sample_rate

    def ask(self, audio: Audio, **stop: Unpack[StopOptions]) -> Reply:
        """Answer a spoken question with text and speech.

        Raises:
            ValueError: the file cannot be read, or is longer than the encoder accepts; the message names it.
            omnikit.generate.QueueFull: too many questions are waiting.
        """
        return self.join(self.stream(audio, **stop))

    def stream(self, audio: Audio, *, mode: str = EXACT, **stop: Unpack[StopOptions]) -> Chunks:
        """Answer a spoken question with text and speech, yielding chunks while the answer is being decoded.

        The first chunks hold few frames, later ones more. Drop the iterator to end the answer, or see `StopOptions`.

        Args:
            mode: a name in `omnikit.streaming.MODES`. `low_latency` yields samples from the first complete frame on;
                where they depend on frames still to come, they are estimated and differ a little from those of `ask`.

        Raises:
            ValueError: the file cannot be read or is too long, see `ask`; or the mode is unknown.
        """
        return self._chunks("A1A2", self.spoken_question(audio), mode, name=name_of(audio), **stop)

    def transcribe(self, audio: Audio, **stop: Unpack[StopOptions]) -> str:
        """Return the transcript of a spoken recording."""
        return self.generate_text("A1T1", self.spoken_question(audio), name=name_of(audio), **stop).text

    def speak(self, text: str, **stop: Unpack[StopOptions]) -> Reply:
        """Synthesise speech that utters a text."""
        return self.join(self.stream_speech(text, **stop))

    def stream_speech(self, text: str, *, mode: str = EXACT, **stop: Unpack[StopOptions]) -> Chunks:
        """Synthesise speech that utters a text, yielding chunks while it is being decoded; see `stream` for `mode`."""
        return self._chunks("T1A1", self.written_question(text), mode, **stop)

    def chat(self, text: str, **stop: Unpack[StopOptions]) -> str:
        """Answer a written question with text alone."""
        return self.generate_text("T1T2", self.written_question(text), **stop).text

    def answer(self, text: str, **stop: Unpack[StopOptions]) -> Reply:
        """Answer a written question with text and speech."""
        return self.join(self._chunks("T1A2", self.written_question(text), EXACT, **stop))

    def conversation(self, *, seed: int | None = None, max_positions: int | None = None) -> Conversation:
        """Begin a conversation of several turns, each of which continues the turns before it.

        Args:
            seed: seed of sampled answers, 0 to 2**32 - 1, which alone determines them; None = drawn for each answer.
            max_positions: number of positions at which the oldest turns are dropped; None = those of the backbone.

        Raises:
            ValueError: a wrong number, or an engine that cannot store a sequence between turns.
        """
        return Conversation(self, seed=seed, max_positions=max_positions)

    def generate_text(
        self, task: str, question: Question, *, name: str | None = None, **stop: Unpack[StopOptions]
    ) -> Reply:
        """Generate a text-only answer, and return it with the reason why it ended.

        The tasks are A1T1 (`transcribe`), T1T2 (`chat`) and A1T2 (a spoken question answered in writing).

        Args:
            task: name of a task in `omnikit.tasks.TASKS` whose answer is text only.
            question: the question from `spoken_question` or `written_question`.
            name: the recording's name in error messages.
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
        seed: int | None = None,
        max_steps: int | None = None,
        history: History | None = None,
        turn: Turn | None = None,
        low_priority: bool = False,
        **stop: Unpack[StopOptions],
    ) -> Request:
        """Submit a question without waiting for its answer, and return the request, see `omnikit.generate.Request`.

        Args:
            task: name of a task in `omnikit.tasks.TASKS`.
            question: the question from `spoken_question` or `written_question`.
            sound: a name in `omnikit.streaming.MODES` by which codes are decoded to a waveform; None = they are not
                decoded.
            name: the recording's name in error messages.
            seed: seed of the sampling noise, see `omnikit.generate.Request`.
            max_steps: maximum number of decode steps; None = the limit in `Omni.decoding`.
            history: conversation that the question continues, see `conversation`.
            turn: turn of `history` that is computed; None = a new one.
            low_priority: admit the request only while no other one waits, and never to the last quarter of the slots.

        Raises:
            omnikit.generate.QueueFull: too many questions are waiting.
        """
        limits = {"time_limit": stop.get("time_limit"), "max_steps": max_steps}
        decoding = replace(self.decoding, **{name: limit for name, limit in limits.items() if limit is not None})
        options = {"decoding": decoding, "sound": sound, "cancel": stop.get("cancel"), "name": name}
        options |= {"seed": seed, "history": history, "turn": turn, "low_priority": low_priority}
        return self.decoder.submit(TASKS[task], question, **options)

    def spoken_question(self, audio: Audio) -> Question:
        """Convert a recording to a `Question`, checking that the encoder accepts its length.

        Raises:
            ValueError: the file cannot be read, or the encoder takes no recording of this length; the message names it.
        """
        wav = audio if isinstance(audio, Tensor) else load_audio(audio, self.model.encoder.sample_rate)
        with suppress(NotImplementedError):  # such an encoder refuses a length when it encodes
            try:
                self.model.encoder.num_frames(wav.shape[0])
            except ValueError as error:
                raise ValueError(f"{name_of(audio)}: {error}") from None
        return Question(wav=wav)

    def written_question(self, text: str) -> Question:
        """Convert a text to a `Question` of token ids.

        Raises:
            ValueError: the text is empty, or has characters that the tokenizer lacks.
        """
        if not text.strip():
            raise ValueError(f"text {text!r}: empty")
        return Question(text=self.model.llm.tokenizer.encode(text))

    def close(self) -> None:
        """Cancel all answers that are being decoded and end the decoding thread; the next question starts a new one."""
        self.decoder.close()

    def _chunks(
        self, task: str, question: Question, mode: str, *, name: str | None = None, **stop: Unpack[StopOptions]
    ) -> Chunks:
        check_mode(mode)
        return iter(self.submit(task, question, sound=mode, name=name, **stop))

    def join(self, chunks: Chunks) -> Reply:
        """Wait for the end of a streamed answer, and return it whole."""
        try:
            received = list(chunks)
        except BaseException:  # Ctrl-C among them
            chunks.close()
            raise
        text, wav = "".join(p.text for p in received), torch.cat([p.wav for p in received])
        return Reply(text, wav, self.sample_rate, received[-1].end)


def load(
    checkpoint: str | Path | None = None,
    *,
    device: str = "cpu",
    strategy: Strategy | None = None,
    engine: str = AUTO,
    dtype: str = FLOAT32,
    weights: Mapping[str, str | Path] | None = None,
) -> Omni:
    """Load a system: one that comes with the package, or that of a checkpoint folder or a hub id.

    Args:
        checkpoint: name of a shipped system, such as `mini`, path of a checkpoint folder, or hub id; a folder of that
            name is preferred. None = `mini`.
        device: where torch runs the system, such as `cpu` or `cuda`.
        strategy: decoding strategy; None = `parallel`.
        engine: a name in `omnikit.engines.ENGINES`, or `auto`; `openvino` runs on the CPU only.
        dtype: type in which torch's engines compute everything but encoder and codec: float32, bfloat16 or float16.
        weights: file, folder or name of public weights, by part, for a checkpoint that only names them:
            `{"encoder": "base.pt"}`. None = the folder in the environment variable `OMNIKIT_WEIGHTS`, or the library
            that publishes them.

    Raises:
        ValueError: the folder or a file in it is missing or does not fit, or the engine cannot run the system.
    """
    from omnikit.checkpoint import load as load_checkpoint

    check_engine(engine)
    if engine in TORCH_ENGINES:
        model = load_checkpoint(checkpoint, device=device, dtype=dtype_named(dtype), public_weights=weights)
        return Omni(model, strategy=strategy, engine=open_engine(engine, model))
    if device != "cpu":
        raise ValueError(f"--engine {engine}: runs on the CPU, not on --device {device}")
    if dtype != FLOAT32:
        raise ValueError(f"dtype {dtype}: is for {', '.join(TORCH_ENGINES)}; {engine} stores weights in its own way")
    model, machine = load_openvino(checkpoint, public_weights=weights)
    return Omni(model, strategy=strategy, engine=machine)


def dtype_named(name: str) -> torch.dtype:
    """Return the torch data type for a name in `DTYPES`, such as `bfloat16`.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype {name}: unknown (choices: {', '.join(DTYPES)})")
    return DTYPES[name]


def build(
    *, pretrained: bool = False, size: str | None = None, tts_blocks: int | None = None, **parts: object
) -> OmniLM:
    """Build a system from parts chosen by name, not trained together: `build(codec="mel_rvq", pattern="flattened")`.

    Args:
        pretrained: let each part read the weights that its `weights` option names. Otherwise only weights named in this
            call are read, and an `llm` chosen by name has the tokenizer `bytes` unless `llm.tokenizer` is given.
        size: `tiny` builds every part that supports it with few and narrow layers; None = as the part files say.
        tts_blocks: number of blocks of the TTS adapter; None = as `hparams/system.yaml` says.
        parts: kind = name; or an option of a part by its dotted key: `**{"codec.num_codebooks": 4}`.

    Raises:
        ValueError: a name or an option is unknown.
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
