"""Tests that run each evaluation script with an untrained system on a tiny corpus."""

import dataclasses
import io
import json
from pathlib import Path
from unittest.mock import ANY

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import whisper

from omnikit.audio.io import save_audio

ASR = "recipes/LibriSpeech/ASR/evaluate.py"
QA = "recipes/VoiceAssistant/QA/evaluate.py"
DIALOGS = "recipes/VoiceAssistant/QA/evaluate_dialogs.py"
TTS = "recipes/LibriTTS/TTS/evaluate.py"
GRAMMAR = """#JSGF V1.0;
grammar colors;
<thing> = sky | sea | snow;
<color> = blue | white;
public <sentence> = the <thing> is <color>;
"""


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(int(16000 * seconds), generator=torch.Generator().manual_seed(seed)) / 10


@pytest.fixture
def corpus(tmp_path):
    """Folder of a corpus in LibriSpeech's layout with two valid utterances and one whose recording is damaged."""
    for chapter in (1, 2):
        folder = tmp_path / "corpus" / "test-clean" / "7" / str(chapter)
        folder.mkdir(parents=True)
        save_audio(folder / f"7-{chapter}-0000.flac", noise(0.5 + chapter / 4, chapter), 16000)
    (folder.parent / "1" / "7-1.trans.txt").write_text("7-1-0000 THE SKY IS BLUE\n")
    (folder / "7-2.trans.txt").write_text("7-2-0000 BLUE SKY\n7-2-0001 NOT AUDIO\n")
    (folder / "7-2-0001.flac").write_bytes(b"fLaC but nothing that follows makes sense")
    return tmp_path / "corpus"


def test_asr(run_here, untrained, corpus, tmp_path):
    status, out, err = run_here(
        ASR, "hparams/eval.yaml", "../../../egs/mini/hparams/eval_asr.yaml", "--splits", "[test-clean]",
        "--data_folder", corpus, "--checkpoint", untrained, "--output_folder", tmp_path / "out",
        "--decoding.max_steps", "5",
    )  # fmt: skip
    assert status == 0, err
    result = json.loads((tmp_path / "out" / "asr.json").read_text())["splits"]["test-clean"]
    counts = {name: group["utterances"] for name, group in result["groups"].items()}
    assert counts == {"all": 2, "template sentences": 1, "random word strings": 1}
    assert result["skipped"] == {"unreadable": 1}
    assert result["published_wer"] is None
    assert "test-clean, template sentences" in out


def test_asr_of_a_baseline(run_here, corpus, tmp_path):
    torch.manual_seed(0)
    dims = whisper.model.ModelDimensions(80, 1500, 16, 2, 1, 51865, 12, 16, 2, 1)
    state = whisper.model.Whisper(dims).state_dict()
    torch.save({"dims": dataclasses.asdict(dims), "model_state_dict": state}, tmp_path / "whisper.pt")
    status, out, err = run_here(
        ASR, "hparams/eval.yaml", "--splits", "[test-clean]", "--data_folder", corpus, "--output_folder",
        tmp_path / "out", "--baseline", "whisper_small", "--baseline_weights", tmp_path / "whisper.pt",
    )  # fmt: skip
    assert status == 0, err
    result = json.loads((tmp_path / "out" / "asr.json").read_text())
    assert result["baseline"].startswith("whisper_small") and "checkpoint" not in result
    assert result["splits"]["test-clean"]["groups"]["all"]["utterances"] == 2
    assert "- normalizer: english (openai-whisper 20" in out
    folders = ["--data_folder", corpus, "--output_folder", tmp_path]
    status, out, err = run_here(ASR, "hparams/eval.yaml", *folders, "--baseline", "siri")
    assert status == 2 and "--baseline siri" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--baseline", "whisper_small"], "--baseline whisper_small: is scored in place of a system"),
        (["--normalizer", "german"], "--normalizer german"),
        (["--splits", "[test-cleen]"], "test-cleen"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run_here, untrained, corpus, tmp_path, flags, message):
    common = ["--data_folder", corpus, "--checkpoint", untrained, "--output_folder", tmp_path / "out"]
    status, _, err = run_here(ASR, "hparams/eval.yaml", *common, *flags)
    assert status == 2
    assert message in err and err.count("\n") == 1


@pytest.fixture
def grammar(tmp_path):
    (tmp_path / "colors.jsgf").write_text(GRAMMAR)
    return tmp_path / "colors.jsgf"


def flac(wav: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wav.numpy(), 16000, format="FLAC")
    return buffer.getvalue()


@pytest.fixture
def questions(tmp_path):
    """Write Parquet tables of three spoken questions and their spoken answers."""
    answers = ["the sky is blue", "the snow is white"]
    asked = {"what color is the sky": answers[0], "say the color of the sky": answers[0], "and the snow": answers[1]}
    (tmp_path / "qa").mkdir()
    spoken = pa.table({"t2": answers, "a2": [flac(noise(0.7, i)) for i in range(2)]})
    pq.write_table(spoken, tmp_path / "qa" / "answers.parquet")
    columns = {
        "id": ["q0", "q1", "q2"],
        "t1": list(asked),
        "t2": list(asked.values()),
        "kind": ["color", "color", "snow"],
        "a1": [flac(noise(0.5 + i / 10, i)) for i in range(3)],
    }
    pq.write_table(pa.table(columns), tmp_path / "qa" / "test_seen.parquet")
    return tmp_path


@pytest.fixture
def llama(tmp_path):
    """Path of YAML overrides that add a source of questions with several accepted answers; one recording is unreadable.
    """
    (tmp_path / "q0.flac").write_bytes(flac(noise(0.5)))
    (tmp_path / "q1.flac").write_bytes(b"no sound")
    entries = ["q0,what is the capital,q0.flac,Paris|the city of Paris", "q1,how many are there,q1.flac,7|seven"]
    (tmp_path / "llama.csv").write_text("\n".join(["ID,t1,a1,accepted", *entries]) + "\n")
    (tmp_path / "llama.yaml").write_text(f"sources:\n  llama: {{manifest: {tmp_path / 'llama.csv'}}}\n")
    return tmp_path / "llama.yaml"


@pytest.fixture
def lengths(tmp_path) -> Path:
    """Folder of a torch.hub stub of the UTMOS network, whose score is the duration of the utterance in seconds."""
    (tmp_path / "hub").mkdir()
    code = "import torch\n\ndef utmos22_strong():\n    return Seconds()\n\nclass Seconds(torch.nn.Module):\n"
    code += "    def forward(self, wave, sr):\n        return torch.full((len(wave),), wave.shape[1] / sr)\n"
    (tmp_path / "hub" / "hubconf.py").write_text(code)
    return tmp_path / "hub"


def test_questions(run_here, untrained, questions, llama, grammar, lengths, tmp_path):
    status, _, err = run_here(
        QA, "hparams/eval.yaml", "../../../egs/mini/hparams/eval_qa.yaml", llama, "--data_folder", questions,
        "--checkpoint", untrained, "--output_folder", tmp_path / "out", "--splits", "[test_seen, llama]",
        "--grammar_file", grammar, "--decoding.max_steps", "12", "--speed_questions", "1",
        "--speed_threads", "1", "--keep_wavs", "2", "--mos", "utmos", "--mos_source", lengths,
    )  # fmt: skip
    assert status == 0, err
    result = json.loads((tmp_path / "out" / "qa.json").read_text())
    assert result["mos"]["original recordings"]["utterances"] == 3
    ways = result["splits"]["test_seen"]
    assert set(ways) == {"text", "speech_parallel", "speech_batch_parallel"}
    for way in ways.values():
        assert way["truncated_percent"] == pytest.approx(100 * way["truncated"] / 3)
        assert way["containing_percent"] >= way["percent"] >= way["exact_percent"]
        assert way["asked"] == 3 and way["kinds"]["color"]["asked"] == 2
    sounds = list(result["intelligibility"])
    assert sounds[:3] == ["original recordings", "resynthesis by the codec", "the codec, codes shuffled"]
    assert len(sounds) == 5 and result["intelligibility"]["original recordings"]["utterances"] == 3
    for way in ("speech_parallel", "speech_batch_parallel"):
        assert result["speed"][way]["real_time_factor"] > 0
        wavs = sorted((tmp_path / "out" / "wav" / way).glob("*.wav"))
        assert [wav.stem for wav in wavs] == ["q0", "q1"]
        assert soundfile.info(wavs[0]).frames > 0
    for way in result["splits"]["llama"].values():
        assert (way["asked"], way["kinds"], way["skipped"]) == (1, {}, {"unreadable": 1})
    answers = (tmp_path / "out" / "answers_llama_text.jsonl").read_text()
    assert json.loads(answers)["right"] == ["Paris", "the city of Paris"]


@pytest.fixture
def dialogs(tmp_path):
    """Write Parquet tables of two dialogs of two turns; the second question of one is typed."""
    (tmp_path / "qa").mkdir()
    answers = ["the sky is blue", "the snow is white"]
    spoken = pa.table({"t2": answers, "a2": [flac(noise(0.7, i)) for i in range(2)]})
    pq.write_table(spoken, tmp_path / "qa" / "answers.parquet")
    columns = {
        "id": ["d0-0", "d0-1", "d1-0", "d1-1", "x"],
        "dialog": ["d0", "d0", "d1", "d1", None],
        "turn": pa.array([0, 1, 0, 1, None], pa.int32()),
        "t1": ["what color is the sky", "and the snow"] * 2 + ["hello"],
        "t2": answers * 2 + ["hello"],
        "kind": ["first", "follow-and"] * 2 + ["first"],
        "a1": [flac(noise(0.5, 0)), flac(noise(0.5, 1)), flac(noise(0.6, 2)), None, flac(noise(0.5, 3))],
    }
    for split in ("train", "test_seen"):
        pq.write_table(pa.table(columns), tmp_path / "qa" / f"dialogs_{split}.parquet")
    return tmp_path


def test_conversations(run_here, untrained, dialogs, tmp_path):
    common = [
        DIALOGS, "hparams/eval_dialogs.yaml", "../../../egs/mini/hparams/eval_dialogs.yaml", "--data_folder", dialogs,
        "--checkpoint", untrained, "--output_folder", tmp_path / "out", "--splits", "[dialogs_test_seen]",
        "--decoding.max_steps", "12",
    ]  # fmt: skip
    status, out, err = run_here(
        *common, "--keep_wavs", "1", "--about_answer", "[{question: and.*, answer: '{answer}'}]"
    )
    assert status == 0, err
    result = json.loads((tmp_path / "out" / "dialogs.json").read_text())
    assert (result["follow_ups"], result["typed"], result["crop"]) == ("^follow", 0.0, [0.25, 0.5, 0.75])
    scores = result["splits"]["dialogs_test_seen"]["speech"]
    assert (scores["dialogs"], scores["typed"], scores["truncated"]) == (2, 1, 4)
    assert scores["skipped"].pop("no dialog or turn") == 1
    assert scores["follow_ups"]["history"]["asked"] == scores["follow_ups"]["alone"]["asked"] == 2
    assert scores["follow_ups"]["cropped"]["asked"] + scores["skipped"].get("answer too short to cut", 0) == 3 * 2
    assert scores["kinds"]["follow-and"]["frequent_of_text"]["percent"] == 100
    assert "| dialogs_test_seen, speech: all follow-ups | 2 |" in out
    lines = (tmp_path / "out" / "dialogs_dialogs_test_seen_speech.jsonl").read_text().splitlines()
    assert [json.loads(line)["typed"] for line in lines] == [False, False, False, True]
    (wav,) = (tmp_path / "out" / "wav").rglob("*.wav")
    assert wav.stem == "d0" and soundfile.info(wav).duration > 3  # two questions of 0.5 s and two pauses of 1 s
    status, _, err = run_here(*common, "--typed", "2")
    assert status == 2 and "--typed 2: must be" in err and err.count("\n") == 1


def test_speech_from_text(run_here, untrained, corpus, grammar, lengths, tmp_path):
    (tmp_path / "LibriTTS").mkdir()
    lines = [f"7-{n}-0000,THE SKY IS BLUE,{corpus}/test-clean/7/{n}/7-{n}-0000.flac" for n in (1, 2)]
    (tmp_path / "LibriTTS" / "test-clean.csv").write_text("\n".join(["ID,t1,a1", *lines]) + "\n")
    status, _, err = run_here(
        TTS, "hparams/eval.yaml", "--data_folder", tmp_path, "--checkpoint", untrained, "--output_folder",
        tmp_path / "out", "--grammar_file", grammar, "--ids", "^7-1-", "--decoding.max_steps", "12",
        "--codecs", "[{name: snac_mini}]", "--speed_sentences", "1", "--mos", "utmos", "--mos_source", lengths,
    )  # fmt: skip
    assert status == 0, err
    result = json.loads((tmp_path / "out" / "tts.json").read_text())
    assert result["truncated_percent"] in (0, 100) and result["speed"]["the system, from text"]["p95_first_audio"] > 0
    rates = result["intelligibility"]
    assert list(rates) == [
        "original recordings",
        "resynthesis by the system's codec",
        "resynthesis by snac_mini",
        "the system's codec, codes shuffled",
        "the system, from text",
    ]
    assert all(rate["utterances"] == 1 and rate["words"] == 4 for rate in rates.values())
    seconds = soundfile.info(corpus / "test-clean/7/1/7-1-0000.flac").duration
    assert result["mos"]["original recordings"] == {
        "mean": pytest.approx(seconds, rel=0.01),
        "worst": ANY,
        "utterances": 1,
    }
    assert set(result["mos"]) <= set(rates) and "| UTMOS, mean |" in (tmp_path / "out" / "tts.md").read_text()
    assert (tmp_path / "out" / "wav" / "7-1-0000.wav").exists()
