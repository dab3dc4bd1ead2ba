"""Published speech recognisers as baselines, scored by the same evaluation as an omnikit system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.encoders.whisper_weights import read_whisper
from omnikit.errors import one_line
from omnikit.evaluate.text_normalisation import language_code
from omnikit.hub import hub_folder, is_hub_id
from omnikit.offline.batches import DecodedAnswer, Replied, Respond, load_recordings
from omnikit.untrusted_models import read_network, read_settings

SAMPLE_RATE = 16000
"""Sample rate in Hz of the input of all baseline recognisers."""
NO_CODES = torch.zeros(0, 0, dtype=torch.long)
CTC = {"wav2vec2_base": "facebook/wav2vec2-base-960h", "wav2vec2_large": "facebook/wav2vec2-large-960h"}
"""Mapping from baseline names to hub ids of wav2vec 2.0 models with a CTC head, fine-tuned on 960 h of LibriSpeech."""
MASK = "wav2vec2.masked_spec_embed"
"""Name of a wav2vec 2.0 tensor that only training needs and that published weights may lack."""
WHISPER = {
    f"whisper_{name.replace('-', '_')}": name for name in ("tiny", "base", "small", "medium", "large-v3", "turbo")
}
BASELINES = (*WHISPER, *CTC)


class Recogniser(Protocol):
    """Interface of a speech recogniser that transcribes batches of waveforms."""

    sample_rate: int
    """Sample rate in Hz of the waveforms that a recogniser transcribes."""

    def transcribe(self, wavs: Sequence[Tensor], language: str = "") -> list[str]:
        """Return the transcripts of waveforms [N]; each is independent of the other waveforms.

        Args:
            wavs: waveforms [N] in -1..1.
            language: ISO 639-1 code of the language that is spoken in all of them; "" = unknown.

        Raises:
            ValueError: the recogniser does not know the language.
        """


def check_baseline(name: str, checkpoint: str | None = None) -> None:
    """Refuse an unknown baseline, and one beside the checkpoint of a system.

    Raises:
        ValueError: the name is not in `BASELINES`, or there is a checkpoint.
    """
    if checkpoint is not None:
        raise ValueError(f"--baseline {name}: is scored in place of a system; leave out --checkpoint {checkpoint}")
    if name not in BASELINES:
        raise ValueError(f"--baseline {name}: no such baseline (choices: {', '.join(BASELINES)})")


def open_baseline(name: str, weights: str | None = None, device: str = "cpu") -> Recogniser:
    """Return the published recogniser of a name in `BASELINES`.

    Args:
        name: name of the baseline.
        weights: weights instead of the published ones: a `.pt` file of openai-whisper, or a folder or hub id in the
            format of transformers.
        device: device that it runs on.

    Raises:
        ValueError: the name is unknown, or the weights cannot be loaded.
    """
    check_baseline(name)
    if name in WHISPER:
        return WhisperBaseline(weights or WHISPER[name], device)
    return CTCBaseline(weights or CTC[name], device)


class WhisperBaseline:
    """A baseline recogniser that transcribes with openai-whisper's own greedy decoding.

    It decodes as Whisper's authors evaluate: in the language that is given, without timestamps, in a window of 30 s. A
    longer recording is transcribed window by window. A language that is not given is detected for each recording.

    Args:
        weights: name of an openai-whisper model, or a `.pt` file.
        device: device that it runs on.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, weights: str, device: str = "cpu"):
        self.model = read_whisper(weights).to(device).eval()
        self.fp16 = torch.device(device).type == "cuda"

    def transcribe(self, wavs: Sequence[Tensor], language: str = "") -> list[str]:
        """Transcribe waveforms [N], those of up to 30 s in one batch; see `Recogniser.transcribe`."""
        import whisper

        known = _whisper_language(language)
        long = [i for i, wav in enumerate(wavs) if len(wav) > whisper.audio.N_SAMPLES]
        texts = {i: self._transcribe_long(wavs[i], known) for i in long}
        short = [i for i in range(len(wavs)) if i not in texts]
        if short:
            mels = [self._mel(wavs[i]) for i in short]
            options = whisper.DecodingOptions(language=known, without_timestamps=True, fp16=self.fp16)
            results = whisper.decode(self.model, torch.stack(mels), options)
            texts |= {i: result.text for i, result in zip(short, results, strict=True)}
        return [texts[i].strip() for i in range(len(wavs))]

    def _mel(self, wav: Tensor) -> Tensor:
        """Compute Whisper's log-mel spectrogram [M, 3000] of a waveform [N], padded or truncated to 30 s."""
        import whisper

        return whisper.log_mel_spectrogram(whisper.pad_or_trim(wav), self.model.dims.n_mels).to(self.model.device)

    def _transcribe_long(self, wav: Tensor, language: str | None) -> str:
        options = {"language": language, "temperature": 0.0, "fp16": self.fp16}
        return self.model.transcribe(wav, verbose=None, **options)["text"]


def _whisper_language(language: str) -> str | None:
    """Return Whisper's code of a language; None if it is "", which lets Whisper detect it.

    Raises:
        ValueError: Whisper does not know the language.
    """
    from whisper.tokenizer import LANGUAGES

    code = language_code(language)
    if code and code not in LANGUAGES:
        raise ValueError(f"language {language!r}: Whisper does not recognise it (choices: {', '.join(LANGUAGES)})")
    return code or None


class CTCBaseline:
    """A baseline recogniser with wav2vec 2.0 and CTC, from transformers, decoded greedily without a language model.

    Recordings are transcribed one at a time: the network's group norm includes padding, which would change the
    transcripts in a batch.

    Args:
        weights: folder or hub id with model, feature extractor and tokenizer.
        device: device that it runs on.

    Raises:
        ValueError: the folder does not exist or holds no such model.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, weights: str, device: str = "cpu"):
        from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

        folder = str(hub_folder(weights)) if is_hub_id(weights) else weights
        if not Path(folder).is_dir():
            raise ValueError(f"weights {weights}: no such folder")
        try:
            model, report = read_network(Wav2Vec2ForCTC, folder)
            self.processor: Any = read_settings(Wav2Vec2Processor, folder)
        except Exception as error:  # transformers and safetensors raise many kinds
            raise ValueError(f"weights {weights}: no wav2vec 2.0 with a CTC head ({one_line(error)})") from None
        lacking = sorted(set(report["missing_keys"]) - {MASK})
        if lacking:
            raise ValueError(f"weights {weights}: no wav2vec 2.0 with a CTC head (lacks {lacking[0]})")
        self.model = model.to(device).eval()

    def transcribe(self, wavs: Sequence[Tensor], language: str = "") -> list[str]:
        """Transcribe waveforms [N] one by one in the language of the weights; see `Recogniser.transcribe`."""
        return [self._transcribe(wav) for wav in wavs]

    def _transcribe(self, wav: Tensor) -> str:
        if self.model._get_feat_extract_output_lengths(len(wav)) < 1:
            return ""  # shorter than a frame
        values = self.processor(wav.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values
        with torch.inference_mode():
            labels = self.model(values.to(self.model.device)).logits.argmax(dim=-1)
        return self.processor.batch_decode(labels)[0]


def by_recogniser(recogniser: Recogniser, language: str | None = None) -> Respond:
    """Return a function that transcribes batches of manifest entries with a recogniser, like `by_model` for systems.

    Args:
        recogniser: recogniser that transcribes.
        language: language of the entries that name none; None = unknown.
    """

    def respond(entries: list[ManifestEntry]) -> Replied:
        loaded, problems = load_recordings(entries, recogniser.sample_rate)
        yield from problems
        spoken = [entry.language or language or "" for entry, _ in loaded]
        for each in dict.fromkeys(spoken):
            alike = [pair for pair, own in zip(loaded, spoken, strict=True) if own == each]
            texts = recogniser.transcribe([wav for _, wav in alike], each)
            yield from ((entry, DecodedAnswer(text, NO_CODES)) for (entry, _), text in zip(alike, texts, strict=True))

    return respond
