"""Hold a Realtime session with a server in which a speaker of FSDD says strings of digits, and show what is understood.

    omnikit serve --checkpoint mini_whisper      # in another terminal
    python session.py --data_folder /data/free-spoken-digit-dataset --speaker lucas

The client is OpenAI's Python SDK (`pip install openai`), unmodified. For each string it sends the recordings of the
digits, with pauses, prints the transcript and the answer that come back, and writes the sound of both.
"""

from __future__ import annotations

import argparse
import base64
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from prepare import DIGITS, NAME, SAMPLE_RATE, check_speakers, joined, read, recordings, recordings_folder

from omnikit.audio.io import save_audio
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.option_ranges import SEED
from omnikit.serve.audio_formats import InputAudio, OutputAudio
from omnikit.serve.realtime.actions import RATE

if TYPE_CHECKING:
    from openai.resources.realtime.realtime import RealtimeConnection

PCM = "audio/pcm"
"""The Realtime protocol's name for the audio format that the server takes and sends by default."""
TRANSCRIPT = "conversation.item.input_audio_transcription.completed"


def spoken(folder: Path, speaker: str, string: str, seed: int) -> np.ndarray:
    """Return a waveform [N] at 16 kHz of a speaker who says the digits of a string, each in a randomly drawn recording.

    Raises:
        ValueError: there is no usable recording of one of the digits.
    """
    rng, wavs = np.random.default_rng([seed, *string.encode()]), []
    names = {path: NAME.fullmatch(path.stem) for path in recordings(recordings_folder(folder))}
    for digit in string:
        own = [path for path, name in names.items() if name and (name["speaker"], name["digit"]) == (speaker, digit)]
        found = read(own[rng.integers(len(own))]) if own else None
        if not isinstance(found, tuple):
            raise ValueError(f"--strings {string}: no usable recording of {digit} by {speaker} in {folder}")
        wavs.append(found[1])
    return joined(wavs, rng)


def turn(connection: RealtimeConnection, wav: np.ndarray) -> tuple[str, str, np.ndarray]:
    """Say a waveform [N] at 16 kHz, and return its transcript, and the answer's text and samples [N] at 24 kHz.

    Raises:
        ValueError: the server answers with an error.
    """
    microphone = OutputAudio(PCM, SAMPLE_RATE)
    pcm = microphone.push(wav) + microphone.finish()
    connection.input_audio_buffer.append(audio=base64.b64encode(pcm).decode())
    connection.input_audio_buffer.commit()
    connection.response.create()
    understood, text, samples, ended = None, "", b"", False
    for event in connection:
        if event.type == "error":
            raise ValueError(f"the server answers: {event.error.message}")
        if event.type == TRANSCRIPT:
            understood = event.transcript
        elif event.type == "response.output_audio_transcript.delta":
            text += event.delta
        elif event.type == "response.output_audio.delta":
            samples += base64.b64decode(event.delta)
        ended = ended or event.type == "response.done"
        if ended and understood is not None:
            break
    return understood or "", text, InputAudio(PCM).push(samples)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_folder", type=Path, required=True, metavar="DIR", help="folder of the recordings")
    parser.add_argument("--speaker", required=True, help="name of the speaker")
    parser.add_argument("--strings", nargs="+", default=["7", "314", "2026"], help="digits to say; default: 7 314 2026")
    parser.add_argument("--output_folder", type=Path, default=Path("results/session"), help="default: %(default)s")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="address of the server; default: %(default)s")
    parser.add_argument("--token", default="none", help="token of the server, if it wants one")
    parser.add_argument("--model", default="mini_whisper", help="name of the served system; default: %(default)s")
    parser.add_argument("--seed", type=SEED, default=1, help="seed of the choice of recordings; default: 1")
    options = parser.parse_args()
    if wrong := [string for string in options.strings if not string.isdecimal() or not string.isascii()]:
        raise ValueError(f"--strings {wrong[0]}: not a string of digits")
    check_speakers("speaker", [options.speaker], options.data_folder)
    hold(options)


def hold(options: argparse.Namespace) -> None:
    """Hold a Realtime session by the options of the command line, and print what is said, understood and answered."""
    from openai import APIConnectionError, OpenAI
    from websockets.exceptions import InvalidHandshake

    said = {each: spoken(options.data_folder, options.speaker, each, options.seed) for each in options.strings}
    options.output_folder.mkdir(parents=True, exist_ok=True)
    audio = {"input": {"turn_detection": None, "transcription": {"model": options.model}}}
    client = OpenAI(base_url=options.url, api_key=options.token)
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(client.realtime.connect(model=options.model))
        except (OSError, APIConnectionError, InvalidHandshake) as error:
            raise ValueError(f"--url {options.url}: cannot connect ({error})") from None
        connection.session.update(session={"type": "realtime", "audio": audio})
        for number, (string, wav) in enumerate(said.items(), 1):
            understood, text, answer = turn(connection, wav)
            save_audio(options.output_folder / f"said{number}.wav", torch.from_numpy(wav), SAMPLE_RATE)
            save_audio(options.output_folder / f"answer{number}.wav", torch.from_numpy(answer), RATE)
            print(f"{options.speaker} says  {' '.join(DIGITS[int(digit)] for digit in string)}")
            print(f"understood  {understood}")
            print(f"answer      {text}\n")


if __name__ == "__main__":
    with bad_input_exits():
        main()
