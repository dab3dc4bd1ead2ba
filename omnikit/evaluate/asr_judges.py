"""Judges of intelligibility: recognisers that transcribe generated speech, so that it can be scored by WER.

The judge is pocketsphinx with one grammar for the whole domain, or any other recogniser. The grammar must be built from
the templates and word lists of the domain, never from the sentences under test, which would give the judge the answers.
pocketsphinx's acoustic model and pronunciations are those of its wheel (US English).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import soxr
import torch
from torch import Tensor

from omnikit.api import Omni
from omnikit.evaluate.baseline_recognisers import Recogniser
from omnikit.evaluate.text_normalisation import language_code

SAMPLE_RATE = 16000
MARGIN = 0.15
"""Length in seconds of the near-silence that is added before and after an utterance; pocketsphinx expects some."""
HISS = 1e-3
"""Standard deviation of the noise that is added to an utterance for pocketsphinx. Synthetic speech has digital silence,
whose logarithm upsets the recogniser's normalisation: WER 23 % on clear speech without the noise, 1 % with it."""
SILENT = 0.01
"""Peak amplitude below which a waveform counts as silence; a recogniser could find words in noise."""


class PocketsphinxJudge:
    """A judge of intelligibility that recognises speech with pocketsphinx and a grammar.

    Args:
        grammar: JSGF text with one public rule.
        beam: likelihood relative to the best path below which a path is pruned; smaller is slower and more exact.

    Raises:
        ValueError: the grammar does not parse, or has words without a known pronunciation.
    """

    def __init__(self, grammar: str, *, beam: float = 1e-48):
        from pocketsphinx import Decoder

        self.decoder = Decoder(
            lm=None, loglevel="FATAL", samprate=SAMPLE_RATE, cmn="batch", bestpath=False, beam=beam, pbeam=beam
        )
        unknown = sorted(word for word in grammar_words(grammar) if self.decoder.lookup_word(word) is None)
        if unknown:
            raise ValueError(f"grammar: no pronunciation is known of {', '.join(unknown)}")
        try:
            self.decoder.add_jsgf_string("domain", grammar)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"grammar: {error or 'does not parse as JSGF'}") from error
        self.decoder.activate_search("domain")

    def transcribe(self, wav: Tensor | np.ndarray, sample_rate: int, language: str = "") -> str:
        """Transcribe a waveform [N] in -1..1 at a rate in Hz; empty for silence and where nothing fits the grammar.

        Raises:
            ValueError: the language is known not to be English.
        """
        if language_code(language) not in ("", "en"):
            raise ValueError(f"--judge pocketsphinx: recognises English only, not {language!r}; choose another judge")
        samples = _at_rate(wav, sample_rate, SAMPLE_RATE)
        if np.abs(samples).max(initial=0) < SILENT:
            return ""
        samples = np.pad(samples, round(MARGIN * SAMPLE_RATE))
        samples = samples + HISS * np.random.default_rng(0).standard_normal(len(samples), dtype=np.float32)
        self.decoder.start_utt()
        self.decoder.process_raw((samples.clip(-1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return found.hypstr if found else ""


class RecogniserJudge:
    """A judge of intelligibility that transcribes with any `Recogniser`."""

    def __init__(self, recogniser: Recogniser):
        self.recogniser = recogniser

    def transcribe(self, wav: Tensor | np.ndarray, sample_rate: int, language: str = "") -> str:
        """Transcribe a waveform [N] in -1..1 at a rate in Hz, see `Recogniser.transcribe`; empty for silence."""
        samples = _at_rate(wav, sample_rate, self.recogniser.sample_rate)
        if np.abs(samples).max(initial=0) < SILENT:
            return ""
        return self.recogniser.transcribe([torch.from_numpy(samples)], language)[0]


class SystemRecogniser:
    """A `Recogniser` that transcribes with an omnikit system.

    The transcript of a recording that its encoder refuses, as too short or too long, is empty.
    """

    def __init__(self, omni: Omni):
        self.omni, self.sample_rate = omni, omni.model.encoder.sample_rate

    def transcribe(self, wavs: Sequence[Tensor], language: str = "") -> list[str]:
        """Transcribe waveforms [N] one by one, in any language; see `Recogniser.transcribe`."""
        return [self._transcribe(wav) for wav in wavs]

    def _transcribe(self, wav: Tensor) -> str:
        try:
            return self.omni.transcribe(wav)
        except ValueError:
            return ""


def _at_rate(wav: Tensor | np.ndarray, sample_rate: int, wanted: int) -> np.ndarray:
    samples = np.asarray(wav, dtype=np.float32)
    return samples if sample_rate == wanted else soxr.resample(samples, sample_rate, wanted)


def grammar_words(grammar: str) -> set[str]:
    """Return the words that occur in a JSGF grammar."""
    body = grammar.split(";", 2)[-1]  # behind the header and the grammar's name
    body = re.sub(r"(public\s+)?<[^>]*>(\s*=)?", " ", body)
    return set(re.findall(r"[^\s|;()\[\]*+]+", body))
