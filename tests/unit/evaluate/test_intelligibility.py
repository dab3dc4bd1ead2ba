import sys
from dataclasses import dataclass

import pytest
import soxr
import torch
from torch import Tensor
from toy import ToyCodec

from omnikit.audio.io import load_audio, save_audio
from omnikit.data.manifest_reader import Codes, ManifestEntry, Recording
from omnikit.evaluate.intelligibility import (
    Reference,
    encoded,
    judge_all,
    judged,
    keep_wavs,
    open_judge,
    reference_speech,
    references,
    shuffled,
)
from omnikit.generate import Decoding
from omnikit.offline.batches import sound
from omnikit.tasks import TASKS


@dataclass
class Recorded:
    """A stand-in for a recording that returns the same waveform for any requested sample rate."""

    wav: Tensor

    def load(self, sample_rate: int) -> Tensor:
        return self.wav


class Ear:
    """A stand-in for a speech recogniser that transcribes only known waveforms, within the error of a coarse codec."""

    def __init__(self, known: dict[str, Tensor]):
        self.known = known

    def transcribe(self, wav: Tensor, sample_rate: int, language: str = "") -> str:
        for text, original in self.known.items():
            if wav.shape == original.shape and (wav - original).abs().max() < 0.2:
                return text
        return ""


@pytest.fixture
def recordings():
    generator = torch.Generator().manual_seed(0)
    return {text: torch.rand(30, generator=generator) * 1.8 - 0.9 for text in ("red cat", "blue dog sees")}


def test_shuffled_keeps_each_codebooks_codes():
    codes = torch.arange(3 * 40).reshape(3, 40)
    mixed = shuffled(codes, torch.Generator().manual_seed(1))
    assert not torch.equal(mixed, codes)
    assert torch.equal(mixed.sort(dim=1).values, codes)


def test_what_is_heard_of_recordings_resynthesis_and_shuffled_codes(recordings):
    listed = [Reference(str(i), text, Recorded(wav)) for i, (text, wav) in enumerate(recordings.items())]
    coarse = ToyCodec(codebook_size=2)
    codecs = {"fine": ToyCodec(codebook_size=50), "coarse": coarse}
    heard = judge_all(Ear(recordings), reference_speech(codecs, listed, own="fine"))
    assert {name: rates.wer for name, (rates, _) in heard.items()} == {
        "original recordings": 0,
        "resynthesis by fine": 0,
        "resynthesis by coarse": 100,
        "fine, codes shuffled": 100,
    }


def test_codes_stand_in_for_recordings_of_the_systems_codec_alone(recordings):
    fine = ToyCodec(codebook_size=50)
    stored = [fine.encode(wav[None])[0].short().tolist() for wav in recordings.values()]
    entries = [
        ManifestEntry(name, "?", text, codes=Codes(name, len(values[0]), values=values))
        for name, text, values in zip(("fine", "other"), recordings, stored, strict=True)
    ]
    utterances = references(entries, TASKS["A1A2"], "fine")
    assert [(each.id, each.text) for each in utterances] == [("fine", "red cat")]
    speech = reference_speech({"fine": fine, "coarse": ToyCodec(codebook_size=2)}, utterances, own="fine")
    heard = judge_all(Ear(recordings), speech)
    assert {name: rates.wer for name, (rates, _) in heard.items()} == {
        "resynthesis by fine": 0,
        "fine, codes shuffled": 100,
    }


def test_a_recording_that_cannot_be_read_is_no_reference(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    save_audio(tmp_path / "good.wav", torch.rand(2000) - 0.5, 16000)
    entries = [
        ManifestEntry(name, name, a1=Recording(name, path=str(tmp_path / f"{name}.wav"))) for name in ("broken", "good")
    ]
    assert [each.id for each in references([*entries, ManifestEntry("written", "x")], TASKS["T1A1"], None)] == ["good"]


def test_an_answer_without_sound_counts_as_not_understood(recordings):
    codec = ToyCodec()
    silent = sound(codec, torch.zeros(3, 0, dtype=torch.long))
    text, wav = next(iter(recordings.items()))
    rates, pairs = judged(Ear(recordings), [("a", text, wav), ("b", text, silent)], 16000, "test")
    assert rates.wer == 50 and [p.hypothesis for p in pairs] == [text, ""]


def test_encoded_is_decoded_by_sound(recordings):
    codec, wav = ToyCodec(codebook_size=50), recordings["red cat"]
    assert (sound(codec, encoded(codec, Reference("a", "red cat", Recorded(wav)))) - wav).abs().max() < 0.1


def test_kept_wavs_are_the_first_ones(tmp_path, recordings):
    utterances = [(f"id{i}", "text", wav) for i, wav in enumerate(recordings.values())]
    keep_wavs(utterances, tmp_path / "wav", 16000, 1)
    assert [p.name for p in (tmp_path / "wav").iterdir()] == ["id0.wav"]
    assert torch.allclose(load_audio(tmp_path / "wav" / "id0.wav", 16000), utterances[0][2], atol=1e-3)


def test_no_grammar_no_judge_and_what_is_none_is_named(monkeypatch, tmp_path):
    assert open_judge("pocketsphinx") is None
    with pytest.raises(ValueError, match=r"--grammar_file nowhere\.jsgf"):
        open_judge("pocketsphinx", "nowhere.jsgf")
    with pytest.raises(ValueError, match=r"--judge nobody: no such judge \(choices: pocketsphinx, whisper_tiny"):
        open_judge("nobody")
    with pytest.raises(ValueError, match=r"words\.jsgf: --judge whisper_small takes no grammar"):
        open_judge("whisper_small", "words.jsgf")
    (tmp_path / "words.jsgf").touch()
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(ValueError, match=r"--judge pocketsphinx: needs the Python package 'pocketsphinx'"):
        open_judge("pocketsphinx", str(tmp_path / "words.jsgf"))


def test_a_system_of_ours_may_judge(saved):
    judge = open_judge(str(saved))
    judge.recogniser.omni.decoding = Decoding(max_steps=8)
    wav = torch.rand(12000, generator=torch.Generator().manual_seed(0)) - 0.5
    assert judge.transcribe(wav, 16000) == judge.recogniser.omni.transcribe(wav)
    at_24khz = torch.from_numpy(soxr.resample(wav.numpy(), 16000, 24000))
    again = judge.recogniser.omni.transcribe(torch.from_numpy(soxr.resample(at_24khz.numpy(), 24000, 16000)))
    assert judge.transcribe(at_24khz, 24000) == again
    assert judge.transcribe(torch.zeros(16000), 16000) == judge.transcribe(wav[:100], 16000) == ""


def test_texts_are_compared_in_the_wanted_spelling(recordings):
    text, wav = "red cat", recordings["red cat"]
    ear = Ear({"Red Cat!": wav})
    assert judged(ear, [("a", text, wav)], 16000, "test")[0].wer == 0
    assert judged(ear, [("a", text, wav)], 16000, "test", str)[0].wer == 100
