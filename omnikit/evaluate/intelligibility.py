"""Measure the intelligibility of speech by the WER of a recogniser, the judge.

Recordings, their resynthesis by codecs, and spoken answers are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from omnikit.api import load
from omnikit.audio.io import save_audio, wav_name
from omnikit.checkpoint import shipped_systems
from omnikit.data.manifest_reader import Codes, ManifestEntry, Recording
from omnikit.errors import missing_package, writing
from omnikit.evaluate.asr_judges import PocketsphinxJudge, RecogniserJudge, SystemRecogniser
from omnikit.evaluate.baseline_recognisers import BASELINES, open_baseline
from omnikit.evaluate.result_tables import markdown_table, percent
from omnikit.evaluate.text_normalisation import Normalizer, plain
from omnikit.evaluate.wer import ErrorRates, Pair, remarks, score
from omnikit.files import make_folder, read_text
from omnikit.hub import is_hub_id
from omnikit.interfaces import Codec
from omnikit.offline.batches import sound
from omnikit.tasks import Task

POCKETSPHINX = "pocketsphinx"
NOT_JUDGED = f"Not judged: {POCKETSPHINX} needs a `--grammar_file`; or choose another `--judge`."
Judgement = tuple[ErrorRates, list[Pair]]
"""Error rates of a judge's transcripts of a set of utterances, and the pairs of reference and transcript."""


class SpokenText(NamedTuple):
    """An utterance to be judged: its id, its reference text, its waveform [N] and its language ("" = unknown)."""

    id: str
    text: str
    wav: Tensor
    language: str = ""


class Judge(Protocol):
    """Interface of a judge of intelligibility, which transcribes speech."""

    def transcribe(self, wav: Tensor, sample_rate: int, language: str = "") -> str:
        """Transcribe a waveform [N] in -1..1 at a rate in Hz; empty for silence.

        Raises:
            ValueError: the judge does not know the language, an ISO 639-1 code; "" = unknown.
        """


def open_judge(
    judge: str, grammar_file: str | None = None, weights: str | None = None, device: str = "cpu"
) -> Judge | None:
    """Return the judge of intelligibility of a name; None if it is pocketsphinx and no grammar is given.

    Args:
        judge: `pocketsphinx`, a name in `BASELINES`, or an omnikit system: its folder, shipped name or hub id.
        grammar_file: file with the sentences that pocketsphinx recognises, as JSGF.
        weights: weights of a baseline, see `open_baseline`.
        device: device that a baseline or a system runs on.

    Raises:
        ValueError: the judge, the file or the checkpoint does not exist, the grammar does not parse, or pocketsphinx
            is not installed.
    """
    check_judge(judge, grammar_file)
    if judge == POCKETSPHINX:
        return None if grammar_file is None else _with_grammar(grammar_file)
    if judge in BASELINES:
        return RecogniserJudge(open_baseline(judge, weights, device))
    return RecogniserJudge(SystemRecogniser(load(judge, device=device)))


def check_judge(judge: str, grammar_file: str | None = None) -> None:
    """Refuse an unknown judge, a grammar file that is missing, and one for a judge that takes none; nothing is loaded.

    Raises:
        ValueError: the message names the flag and the choices.
    """
    known = judge in (POCKETSPHINX, *BASELINES) or Path(judge).is_dir() or judge in shipped_systems()
    if not known and not is_hub_id(judge):
        choices = ", ".join((POCKETSPHINX, *BASELINES, *shipped_systems()))
        raise ValueError(f"--judge {judge}: no such judge (choices: {choices}, or the folder of a trained system)")
    if grammar_file is not None and judge != POCKETSPHINX:
        raise ValueError(f"--grammar_file {grammar_file}: --judge {judge} takes no grammar, only {POCKETSPHINX} does")
    if grammar_file is not None and not Path(grammar_file).is_file():
        raise ValueError(f"--grammar_file {grammar_file}: no such file")


def _with_grammar(file: str) -> PocketsphinxJudge:
    try:
        return PocketsphinxJudge(read_text(file))
    except ModuleNotFoundError as error:
        raise ValueError(f"--judge {POCKETSPHINX}: {missing_package(error.name)}") from None


def judged(
    judge: Judge, utterances: Iterable[SpokenText], sample_rate: int, title: str, normalize: Normalizer = plain
) -> Judgement:
    """Transcribe utterances with a judge of intelligibility; return the transcripts and their error rates.

    Args:
        judge: judge that transcribes.
        utterances: ids, texts, waveforms [N] and, where they are known, languages.
        sample_rate: sample rate of the waveforms in Hz.
        title: label of the progress bar.
        normalize: text normalisation of texts and transcripts.
    """
    spoken = [SpokenText(*each) for each in utterances]
    pairs = [
        Pair(each.id, each.text, judge.transcribe(each.wav, sample_rate, each.language), each.language)
        for each in tqdm(spoken, desc=title)
    ]
    return score(pairs, normalize), pairs


@dataclass(frozen=True)
class Reference:
    """The reference text of an utterance with its recording, or with the codes of its recording."""

    id: str
    text: str
    recording: Recording | None = None
    codes: Codes | None = None
    language: str = ""


def references(
    entries: Iterable[ManifestEntry], task: Task, codec_name: str | None, language: str = ""
) -> list[Reference]:
    """Return the target text and speech of a task for each manifest entry that has both.

    The speech is a readable recording, or codes of the codec `codec_name`; other entries are left out. `language` is
    that of the entries that name none.
    """
    found = []
    for entry in entries:
        text, recording, codes = entry.target_text(task), entry.target_recording(task), entry.target_codes(task)
        if text and recording is not None and recording.check().problem is None:
            found.append(Reference(entry.id, text, recording=recording, language=entry.language or language))
        elif text and codes is not None and codes.codec == codec_name:
            found.append(Reference(entry.id, text, codes=codes, language=entry.language or language))
    return found


def encoded(codec: Codec, reference: Reference) -> Tensor:
    """Return the codes [K, T] of an utterance, computed from its recording if it has one, else its stored codes."""
    device = next((tensor.device for tensor in codec.state_dict().values()), None)
    if reference.recording is None:
        return reference.codes.load().long().to(device)
    with torch.inference_mode():
        return codec.encode(reference.recording.load(codec.sample_rate)[None].to(device))[0]


def shuffled(codes: Tensor, generator: torch.Generator) -> Tensor:
    """Return codes [K, T] with the frames of each codebook in random order.

    Words that a judge recognises in this speech are guesses.
    """
    order = torch.stack([torch.randperm(codes.shape[1], generator=generator) for _ in codes])
    return codes.gather(1, order.to(codes.device))


@dataclass(frozen=True)
class SpeechSet:
    """A set of utterances that are judged together; each waveform is computed when it is needed."""

    sample_rate: int  # Hz
    utterances: Callable[[], Iterable[SpokenText]]


def reference_speech(codecs: dict[str, Codec], utterances: Sequence[Reference], *, own: str) -> dict[str, SpeechSet]:
    """Return sets of speech with which spoken answers are compared: recordings, resynthesis by codecs, shuffled codes.

    Empty sets are left out.

    Args:
        codecs: codecs by name.
        utterances: texts with their recordings or codes.
        own: name of the system's codec, whose stored codes are used where there is no recording, and are shuffled.

    Returns:
        Sets of utterances by the title that they have in results.
    """
    first, recorded = codecs[own], [each for each in utterances if each.recording is not None]

    def speech(codec: Codec, of: Sequence[Reference], make: Callable[[Reference], Tensor]) -> SpeechSet:
        return SpeechSet(
            codec.sample_rate, lambda: (SpokenText(each.id, each.text, make(each), each.language) for each in of)
        )

    def mixed() -> Iterator[SpokenText]:
        generator = torch.Generator().manual_seed(0)  # the same order for all judges
        for each in utterances:
            wav = sound(first, shuffled(encoded(first, each), generator))
            yield SpokenText(each.id, each.text, wav, each.language)

    found = {}
    if recorded:
        found["original recordings"] = speech(first, recorded, lambda each: each.recording.load(first.sample_rate))
    for name, codec in codecs.items():
        if of := utterances if name == own else recorded:
            found[f"resynthesis by {name}"] = speech(
                codec, of, lambda each, codec=codec: sound(codec, encoded(codec, each))
            )
    return {**found, f"{own}, codes shuffled": SpeechSet(first.sample_rate, mixed)} if utterances else found


def judge_all(judge: Judge, speech: dict[str, SpeechSet], normalize: Normalizer = plain) -> dict[str, Judgement]:
    """Transcribe sets of utterances with a judge; return the error rates and transcripts of each set by its title."""
    return {
        title: judged(judge, kind.utterances(), kind.sample_rate, title, normalize) for title, kind in speech.items()
    }


def keep_wavs(utterances: Sequence[SpokenText], folder: Path, sample_rate: int, count: int) -> None:
    """Write the first `count` utterances to a folder as wav files, named by `wav_name`.

    Raises:
        ValueError: the folder cannot be written to.
    """
    with writing(folder):
        make_folder(folder)
    for name, _, wav, *_ in utterances[:count]:
        save_audio(folder / wav_name(name), wav, sample_rate)


def rates_table(rates: dict[str, ErrorRates]) -> str:
    """Return error rates as a Markdown table with a line per kind of speech, and `remarks` about them."""
    rows = [[name, str(r.utterances), percent(r.wer), percent(r.exact)] for name, r in rates.items()]
    notes = [f"- {name}, {remark}" for name, r in rates.items() for remark in remarks(r)]
    table = markdown_table(["Sound", "Utterances", "Judged WER %", "Without an error %"], rows)
    return "\n".join([table, "", *notes]) if notes else table
