"""A bot of pipecat's OpenAI realtime service, as it is published, that prints what it heard as one line of JSON.

python pipecat_bot.py URL KEY QUESTION.pcm OTHER.pcm      (16 bit, 24 kHz)
"""

import asyncio
import json
import sys
from pathlib import Path

from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMRunFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner

RATE = 24000
PIECE_SECONDS = 0.02
PIECE = 2 * int(RATE * PIECE_SECONDS)
PATIENCE = 90.0


class Listener(FrameProcessor):
    """A processor that keeps the frames that pass it, one way or the other."""

    def __init__(self, frames: list[Frame]):
        super().__init__()
        self.frames = frames

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.frames.append(frame)
        await self.push_frame(frame, direction)


class Bot:
    """A pipeline with the service, whose frames are kept."""

    def __init__(self, url: str, key: str, model: str, *, server_vad: bool):
        audio = events.AudioInput(
            transcription=events.InputAudioTranscription(),
            turn_detection=events.TurnDetection(silence_duration_ms=300) if server_vad else False,
        )
        properties = events.SessionProperties(audio=events.AudioConfiguration(input=audio))
        settings = OpenAIRealtimeLLMService.Settings(model=model, session_properties=properties)
        self.service = OpenAIRealtimeLLMService(api_key=key, base_url=url, settings=settings)
        self.frames: list[Frame] = []
        before, after = Listener(self.frames), Listener(self.frames)
        pair = LLMContextAggregatorPair(LLMContext([{"role": "user", "content": "good morning my friend"}]))
        around = ([pair.user()], [pair.assistant()]) if server_vad else ([], [])
        pipeline = Pipeline([*around[0], before, self.service, after, *around[1]])
        self.worker = PipelineWorker(pipeline, cancel_on_idle_timeout=False)
        self.started = asyncio.Event()
        self.worker.event_handler("on_pipeline_started")(self.note_start)

    async def note_start(self, worker: PipelineWorker, frame: Frame) -> None:
        self.started.set()

    def of(self, kind: type[Frame]) -> list:
        return [frame for frame in self.frames if isinstance(frame, kind)]

    @property
    def seconds(self) -> float:
        return sum(len(frame.audio) for frame in self.of(TTSAudioRawFrame)) / 2 / RATE

    @property
    def text(self) -> str:
        return "".join(frame.text for frame in self.of(TTSTextFrame))

    async def hear(self, pcm: bytes) -> None:
        """Feed speech in real time."""
        for at in range(0, len(pcm), PIECE):
            await self.worker.queue_frame(InputAudioRawFrame(pcm[at : at + PIECE].ljust(PIECE, b"\0"), RATE, 1))
            await asyncio.sleep(PIECE_SECONDS)

    async def until(self, condition) -> None:
        """Feed silence until something has happened."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                assert not self.of(ErrorFrame), self.of(ErrorFrame)
                await self.hear(bytes(PIECE))


async def run(bot: Bot, talk) -> None:
    """Run a bot while `talk` speaks to it."""
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(bot.worker)

    async with asyncio.TaskGroup() as tasks:  # an error of one ends the other
        tasks.create_task(runner.run())
        await asyncio.wait_for(bot.started.wait(), PATIENCE)
        await talk(bot)
        await bot.worker.queue_frame(EndFrame())


async def main(url: str, key: str, question: bytes, other: bytes) -> dict:
    found = {}

    async def spoken(bot: Bot) -> None:
        await bot.worker.queue_frame(LLMRunFrame())  # the bot greets first, as in pipecat's examples
        await bot.until(lambda: bot.of(TTSStoppedFrame))
        found["greeting"] = bot.text
        await bot.hear(question)
        await bot.until(lambda: len(bot.of(TTSStoppedFrame)) > 1 and bot.of(TranscriptionFrame))
        found["spoken"], found["seconds"] = bot.text, bot.seconds
        found["heard"] = bot.of(TranscriptionFrame)[0].text

    async def pushed(bot: Bot) -> None:
        await bot.until(lambda: bot.service._api_session_ready)
        await bot.hear(question)
        await bot.worker.queue_frame(UserStoppedSpeakingFrame())
        await bot.until(lambda: bot.of(TTSStoppedFrame))
        found["pushed"] = bot.text

    async def interrupted(bot: Bot) -> None:
        await bot.worker.queue_frame(LLMRunFrame())
        await bot.until(lambda: bot.seconds > 1)
        await bot.hear(other)
        await bot.until(lambda: bot.of(InterruptionFrame) and bot.of(TTSStoppedFrame))
        found["interrupted"] = before = bot.seconds
        await bot.until(lambda: bot.seconds > before)  # the question is answered

    await run(Bot(url, key, "mini", server_vad=True), spoken)
    await run(Bot(url, key, "mini", server_vad=False), pushed)
    await run(Bot(url, key, "long", server_vad=True), interrupted)
    return found


if __name__ == "__main__":
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    url, key, *files = sys.argv[1:]
    print(json.dumps(asyncio.run(main(url, key, *(Path(file).read_bytes() for file in files)))))
