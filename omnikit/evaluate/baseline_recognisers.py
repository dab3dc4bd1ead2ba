"""Recognisers that others have published, to be scored by the same script as a system of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.encoders.whisper_weights import read_whisper
from omnikit.errors import one_line
from omnikit.hub import hub_folder, is_hub_id
from omnikit.offline.batches import DecodedAnswer, Replied, Respond, load_recordings
from omnikit.untrusted_models import read_network, read_settings

SAMPLE_RATE = 16000
"""Hz; of all that are published here."""
LANGUAGE = "en"
NO_CODES = torch.zeros(0, 0, dtype=torch.long)
CTC = {"wav2vec2_base": "facebook/wav2vec2-base-960h", "wav2vec2_large": "facebook/wav2vec2-large-960h"}
"""Fine-tuned on the 960 hours of LibriSpeech."""
MASK = "wav2vec2.masked_spec_embed"
"""Only training needs it; published files may lack it."""
WHISPER = {
    f"whisper_{name.replace('-', '_')}": name for name in ("tiny", "base", "small", "medium", "large-v3", "turbo")
}
BASELINES = (*WHISPER, *CTC)


class Recogniser(Protocol):
    """Writes what is said.

    Args:
        sample_rate: Hz, of what it is given.
    """

    sample_rate: int

    def transcribe(self, wavs: Sequence[Tensor]) -> list[str]:
        """Waveforms [N] -> their texts, each as if it were alone."""


def open_baseline(name: str, weights: str | None = None, device: str = "cpu") -> Recogniser:
    """The recogniser of a name in `BASELINES`.

    Args:
        weights: in place of the published ones: a `.pt` file of openai-whisper, or a folder or hub id of transformers.

    Raises:
        ValueError: no such name, or its weights are not to be had.
    """
    if name not in BASELINES:
        raise ValueError(f"--baseline {name}: no such baseline (choices: {', '.join(BASELINES)})")
    if name in WHISPER:
        return WhisperBaseline(weights or WHISPER[name], device)
    return CTCBaseline(weights or CTC[name], device)


class WhisperBaseline:
    """openai-whisper's own greedy decoding, as its authors evaluate LibriSpeech: English, without timestamps, in a
    window of 30 s. A longer recording is transcribed window by window.

    Args:
        weights: a name of openai-whisper's or a `.pt` file.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, weights: str, device: str = "cpu"):
        self.model = read_whisper(weights).to(device).eval()
        self.fp16 = torch.device(device).type == "cuda"

    def transcribe(self, wavs: Sequence[Tensor]) -> list[str]:
        """See `Recogniser`."""
        import whisper

        texts = {i: self._transcribe_long(wav) for i, wav in enumerate(wavs) if len(wav) > whisper.audio.N_SAMPLES}
        short = [i for i in range(len(wavs)) if i not in texts]
        if short:
            mels = [self._mel(wavs[i]) for i in short]
            options = whisper.DecodingOptions(language=LANGUAGE, without_timestamps=True, fp16=self.fp16)
            results = whisper.decode(self.model, torch.stack(mels), options)
            texts |= {i: result.text for i, result in zip(short, results, strict=True)}
        return [texts[i].strip() for i in range(len(wavs))]

    def _mel(self, wav: Tensor) -> Tensor:
        """[N] -> log-mel [M, 3000]."""
        import whisper

        return whisper.log_mel_spectrogram(whisper.pad_or_trim(wav), self.model.dims.n_mels).to(self.model.device)

    def _transcribe_long(self, wav: Tensor) -> str:
        options = {"language": LANGUAGE, "temperature": 0.0, "fp16": self.fp16}
        return self.model.transcribe(wav, verbose=None, **options)["text"]


class CTCBaseline:
    """A wav2vec 2.0 with its CTC head, by transformers: the best label of each frame, without a language model.

    One recording at a time: its group norm runs over the padding as well, so in a batch the texts would change.

    Args:
        weights: a folder or hub id with model, feature extractor and tokenizer.
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

    def transcribe(self, wavs: Sequence[Tensor]) -> list[str]:
        """See `Recogniser`."""
        return [self._transcribe(wav) for wav in wavs]

    def _transcribe(self, wav: Tensor) -> str:
        if self.model._get_feat_extract_output_lengths(len(wav)) < 1:
            return ""  # shorter than a frame
        values = self.processor(wav.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values
        with torch.inference_mode():
            labels = self.model(values.to(self.model.device)).logits.argmax(dim=-1)
        return self.processor.batch_decode(labels)[0]


def by_recogniser(recogniser: Recogniser) -> Respond:
    """Its transcripts of rows, as the replies of a model."""

    def respond(entries: list[ManifestEntry]) -> Replied:
        heard, problems = load_recordings(entries, recogniser.sample_rate)
        yield from problems
        texts = recogniser.transcribe([wav for _, wav in heard]) if heard else []
        yield from ((entry, DecodedAnswer(text, NO_CODES)) for (entry, _), text in zip(heard, texts, strict=True))

    return respond
