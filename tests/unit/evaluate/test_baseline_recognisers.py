"""Test published speech recognisers at a tiny size: their transcripts equal those of their authors' own code."""

from __future__ import annotations

import dataclasses

import pytest
import soxr
import torch
import whisper
from transformers import Wav2Vec2ForCTC, Wav2Vec2Model, Wav2Vec2Processor

from omnikit.audio.io import save_audio
from omnikit.data.manifest_reader import ManifestEntry, Recording
from omnikit.evaluate.baseline_recognisers import BASELINES, by_recogniser, open_baseline
from omnikit.evaluate.intelligibility import open_judge
from omnikit.offline.batches import gather
from omnikit.tasks import TASKS
from tests.unit.tiny_models import LETTERS, ctc_config, write_ctc

LENGTHS = (9000, 16000, 4321)


def sounds() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=generator) * 0.1 for n in LENGTHS]


@pytest.fixture(scope="module")
def whisper_file(tmp_path_factory) -> str:
    """Return the file of a tiny multilingual Whisper in openai-whisper's format that generates at most 6 tokens."""
    torch.manual_seed(3)
    dims = whisper.model.ModelDimensions(80, 1500, 16, 2, 1, 51865, 12, 16, 2, 1)
    model = whisper.model.Whisper(dims)
    torch.nn.init.normal_(model.decoder.positional_embedding)
    torch.nn.init.normal_(model.encoder.conv1.weight, std=3)
    file = tmp_path_factory.mktemp("whisper") / "tiny.pt"
    torch.save({"dims": dataclasses.asdict(dims), "model_state_dict": model.state_dict()}, file)
    return str(file)


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory) -> str:
    """Return the folder of a tiny wav2vec 2.0 with a CTC head in the format of transformers."""
    return write_ctc(tmp_path_factory.mktemp("ctc"))


@pytest.mark.parametrize("language", ["en", "zh-CN", ""])
def test_whisper_is_its_own_decoder(whisper_file, language):
    found = open_baseline("whisper_small", whisper_file).transcribe(sounds(), language)
    model = whisper.load_model(whisper_file, device="cpu")
    options = whisper.DecodingOptions(language=language[:2] or None, without_timestamps=True, fp16=False)
    mels = [whisper.log_mel_spectrogram(whisper.pad_or_trim(wav)) for wav in sounds()]
    assert found == [whisper.decode(model, mel, options).text.strip() for mel in mels]
    assert any(found)


def test_whisper_reads_all_of_a_long_recording(whisper_file, monkeypatch):
    baseline = open_baseline("whisper_small", whisper_file)
    heard = []

    def transcribe(model, wav, **_):
        heard.append(len(wav))
        return {"text": " long"}

    monkeypatch.setattr(type(baseline.model), "transcribe", transcribe)
    short = baseline.transcribe(sounds()[:1])
    assert baseline.transcribe([torch.zeros(31 * 16000), sounds()[0]]) == ["long", *short]
    assert heard == [31 * 16000]


def test_whisper_is_told_the_language_of_each_recording(whisper_file, tmp_path):
    save_audio(tmp_path / "a.wav", sounds()[0], 16000)
    recording = Recording("a", path=str(tmp_path / "a.wav"))
    entries = [ManifestEntry(name, "text", a1=recording, language=name[:-1]) for name in ("de1", "2", "de3", "fr4")]
    baseline, told = open_baseline("whisper_small", whisper_file), []
    baseline.transcribe = lambda wavs, language: told.append((language, len(wavs))) or [language] * len(wavs)
    found, _ = gather(by_recogniser(baseline, "en"), TASKS["A1T1"], entries, batch_size=4)
    assert told == [("de", 2), ("en", 1), ("fr", 1)]
    assert {name: reply.text for name, reply in found.items()} == {"de1": "de", "2": "en", "de3": "de", "fr4": "fr"}
    with pytest.raises(ValueError, match="language 'xx': Whisper does not recognise it"):
        open_baseline("whisper_small", whisper_file).transcribe(sounds()[:1], "xx")


def test_wav2vec2_is_the_best_label_of_each_frame(ctc_folder):
    baseline = open_baseline("wav2vec2_base", ctc_folder)
    found = baseline.transcribe([*sounds(), torch.zeros(300)])
    model, processor = Wav2Vec2ForCTC.from_pretrained(ctc_folder), Wav2Vec2Processor.from_pretrained(ctc_folder)
    for text, wav in zip(found[:-1], sounds(), strict=True):
        inputs = processor(wav.numpy(), sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            labels = model(inputs.input_values).logits[0].argmax(-1).tolist()
        merged = [a for a, b in zip(labels, [None, *labels], strict=False) if a != b]
        letters = "".join(LETTERS[i] for i in merged if i != 0)
        assert text.split() == letters.replace("|", " ").split() and text
    assert found[-1] == ""


def test_a_published_recogniser_may_judge(ctc_folder):
    judge, baseline = open_judge("wav2vec2_base", weights=ctc_folder), open_baseline("wav2vec2_base", ctc_folder)
    wav = sounds()[1]
    assert judge.transcribe(wav, 16000) == baseline.transcribe([wav])[0] != ""
    at_16khz = torch.from_numpy(soxr.resample(wav.numpy(), 24000, 16000))
    assert judge.transcribe(wav, 24000) == baseline.transcribe([at_16khz])[0]
    assert judge.transcribe(torch.zeros(16000), 16000) == ""


def test_unreadable_recordings_are_counted(ctc_folder, tmp_path):
    for i, wav in enumerate(sounds()):
        save_audio(tmp_path / f"{i}.wav", wav, 16000)
    (tmp_path / "1.wav").write_bytes(b"RIFF nothing")
    entries = [ManifestEntry(str(i), "text", a1=Recording(str(i), path=str(tmp_path / f"{i}.wav"))) for i in range(3)]
    baseline = open_baseline("wav2vec2_base", ctc_folder)
    found, skipped = gather(by_recogniser(baseline), TASKS["A1T1"], entries, batch_size=2)
    assert list(found) == ["0", "2"] and dict(skipped.reasons) == {"unreadable": 1}
    texts = baseline.transcribe([entry.a1.load(16000) for entry in (entries[0], entries[2])])
    assert [reply.text for reply in found.values()] == texts


def test_what_is_no_baseline(tmp_path, whisper_file):
    choices = r"--baseline whisper: no such baseline \(choices: whisper_tiny, .*wav2vec2_base"
    with pytest.raises(ValueError, match=choices):
        open_baseline("whisper")
    assert {"whisper_small", "whisper_large_v3", "wav2vec2_base"} <= set(BASELINES)
    with pytest.raises(ValueError, match=r"none\.pt: no such file"):
        open_baseline("whisper_small", str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match="none: no such folder"):
        open_baseline("wav2vec2_base", str(tmp_path / "none"))


def test_a_wav2vec2_without_a_head_is_refused(ctc_folder, tmp_path):
    Wav2Vec2Model(ctc_config()).save_pretrained(tmp_path)
    Wav2Vec2Processor.from_pretrained(ctc_folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no wav2vec 2\.0 with a CTC head \(lacks lm_head"):
        open_baseline("wav2vec2_base", str(tmp_path))
