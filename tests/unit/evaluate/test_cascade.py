"""Test cascades of recogniser, language model and espeak-ng, alone and as a baseline of a suite's script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
import torch

from omnikit.audio.io import save_audio
from omnikit.data.manifest_reader import ManifestEntry, Recording
from omnikit.evaluate.baseline_llms import BaselineLLM
from omnikit.evaluate.suites.answering import ASKED
from omnikit.evaluate.suites.big_bench_audio import BigBenchAudio
from omnikit.evaluate.suites.cascade import Cascade, cascade
from omnikit.evaluate.suites.items import write_items
from omnikit.evaluate.suites.run import evaluate
from omnikit.offline.batches import Problem
from omnikit.prepare.voices import EspeakVoice
from omnikit.tasks import TASKS
from tests.suites.big_bench_audio_miniature import write
from tests.unit.tiny_models import write_ctc, write_llm

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "recipes" / "BigBenchAudio"
NOTHING = {"checkpoint": None, "baseline_weights": None, "baseline_llm": None, "baseline_tokens": 8}


class CountingRecogniser:
    """A recogniser whose transcript of a recording is the number of its samples."""

    sample_rate = 16000

    def transcribe(self, wavs, language=""):
        return [f"{len(wav)} samples" for wav in wavs]


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory) -> str:
    return write_llm(tmp_path_factory.mktemp("llm"))


def answers(found, task: str, entries: list) -> dict:
    return {entry.id: reply for entry, reply in found.respond(TASKS[task], 4)(entries)}


def test_three_ways_give_one_answer(llm_folder, tmp_path, monkeypatch):
    llm = BaselineLLM(llm_folder, max_tokens=8)
    found = Cascade(CountingRecogniser(), llm, EspeakVoice())
    save_audio(tmp_path / "a.wav", torch.zeros(3200), 16000)
    heard = ManifestEntry("heard", "unlike", a1=Recording("a", path=str(tmp_path / "a.wav")))
    read = ManifestEntry("read", "3200 samples")
    long = ManifestEntry("long", "a" * 130)
    written = answers(found, "T1T2", [read, long])
    assert isinstance(written["long"], Problem) and written["long"].reason == "refused"
    assert written["read"].text == llm.answer([llm.prompt("3200 samples")])[0].text != ""
    monkeypatch.setattr(llm, "answer", None)  # the answer to a prompt is computed once
    spoken = answers(found, "A1A2", [heard])["heard"]
    assert spoken.text == answers(found, "A1T2", [heard])["heard"].text == written["read"].text
    assert answers(found, "A1T2", [read])["read"].reason == "no recording"
    assert found.decode(written["read"].codes).shape == (0,)
    assert found._spoken("two words", "").shape[1] > 0.3 * found.sample_rate
    assert found._spoken("...", "").shape[1] == found._spoken("word", "xx").shape[1] == 0


def test_a_round_is_asked_after_those_before_it(llm_folder):
    llm = BaselineLLM(llm_folder, max_tokens=8)
    found = Cascade(CountingRecogniser(), llm, EspeakVoice())
    rounds = [ManifestEntry(f"d/{i}", text, dialog="d", turn=i) for i, text in enumerate(["One", "Two", "a" * 80, "x"])]
    respond = found.converse(TASKS["T1T2"], rounds[::-1])
    replies = {entry.id: reply for part in (rounds[1:2], rounds[:1], rounds[2:]) for entry, reply in respond(part)}
    first = llm.answer([llm.prompt("One")])[0].text
    prompt = llm.prompt("Two", [("One", first)])
    shown = f"<|user|>One<|end|><|assistant|>{first}<|end|><|user|>Two<|end|><|assistant|>"
    assert prompt == llm.tokenizer(shown, add_special_tokens=False)["input_ids"]
    assert [replies[f"d/{i}"].text for i in (0, 1)] == [first, llm.answer([prompt])[0].text]
    assert [replies[f"d/{i}"].reason for i in (2, 3)] == ["refused", "refused"]


def run(folder: Path, *options: str) -> dict:
    arguments = [str(RECIPE / "hparams" / "eval.yaml"), "--data_folder", str(folder / "data"), "--limit", "1"]
    evaluate(BigBenchAudio(RECIPE / "prompts"), [*arguments, "--output_folder", str(folder / "out"), *options])
    return json.loads((folder / "out" / "bigbenchaudio.json").read_text())


def test_a_suite_scores_a_cascade_like_a_system(llm_folder, tmp_path_factory, capsys):
    folder = tmp_path_factory.mktemp("suite")
    suite = BigBenchAudio()
    write_items(folder / "data", suite.name, suite.layout, suite.read(write(folder / "published")))
    named = ["--baseline", "wav2vec2_base", "--baseline_weights", write_ctc(tmp_path_factory.mktemp("ctc"))]
    named += ["--baseline_llm", llm_folder, "--baseline_tokens", "8"]
    first = run(folder, *named)
    stored = folder / "out" / "answers"
    lines = {task: [json.loads(line) for line in (stored / task / "results.jsonl").open()] for task in ASKED}
    texts = {task: {line["id"]: line["text"] for line in found} for task, found in lines.items()}
    assert len(texts["T1T2"]) == 4 and texts["A1T2"] == texts["A1A2"] != texts["T1T2"]
    wavs = {line["id"]: stored / "A1A2" / line["wav"] for line in lines["A1A2"] if line["wav"]}
    assert wavs and all(soundfile.info(wav).samplerate == 22050 for wav in wavs.values())
    assert first["protocol"]["baseline"] == "wav2vec2_base" and llm_folder in first["protocol"]["baseline_llm"]

    scp = dict(line.split(maxsplit=1) for line in (folder / "out/versa/A1A2/wav.scp").read_text().splitlines())
    assert {key: Path(value) for key, value in scp.items()} == wavs
    (folder / "scores.jsonl").write_text("".join(json.dumps({"key": key, "utmos": 3.25}) + "\n" for key in scp))
    again = run(folder, "--rescore", "true", "--versa", str(folder / "scores.jsonl"))
    scored = {name for name in scp if "utmos (VERSA)" in again["sets"][name.partition("/")[0]]["A1A2"]}
    assert scored == scp.keys() and "3.25" in capsys.readouterr().out
    (folder / "scores.jsonl").write_text('{"key": "other/1", "utmos": 3}\n')
    with pytest.raises(ValueError, match=r"--versa .*: has no spoken answer of this run, but other/1"):
        run(folder, "--rescore", "true", "--versa", str(folder / "scores.jsonl"))
    with pytest.raises(ValueError, match=r"holds results of another run .*baseline_tokens was 8, is 9"):
        run(folder, *named[:-1], "9")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"baseline": "whisper"}, "--baseline whisper: no such baseline"),
        ({"baseline": "whisper_small"}, "--baseline whisper_small: only transcribes; .*--baseline_llm"),
        ({"baseline": "whisper_small", "checkpoint": "results"}, "leave out --checkpoint results"),
    ],
)
def test_a_cascade_that_is_not_complete(options, words):
    with pytest.raises(ValueError, match=words):
        cascade(NOTHING | options, "cpu")
