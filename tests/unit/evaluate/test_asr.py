import json
from dataclasses import replace

import pytest
import torch
from toy import toy_model

from omnikit.audio.io import save_audio
from omnikit.data.manifest_reader import ManifestEntry, Recording
from omnikit.evaluate.asr import evaluate_split, published_wer, write_report
from omnikit.evaluate.asr_command import published_figures
from omnikit.evaluate.text_normalisation import plain
from omnikit.generate import Decoder, Decoding, Question
from omnikit.hparams.yaml_tree import read_tree
from omnikit.offline.batches import by_model, in_batches, replies
from omnikit.tasks import TASKS
from tests.repository import ROOT

DECODING = Decoding(max_steps=6)
TEXTS = {"7-1-0000": "the cat", "7-2-0000": "yes no", "7-1-0001": "what is red"}


@pytest.fixture
def entries(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for i, name in enumerate(TEXTS):
        save_audio(tmp_path / f"{name}.wav", torch.rand(3000 + 1700 * i, generator=generator) - 0.5, 16000)
    (tmp_path / "7-1-0009.wav").write_bytes(b"RIFF no sound at all")
    found = [
        ManifestEntry(name, text, a1=Recording(name, path=str(tmp_path / f"{name}.wav")))
        for name, text in TEXTS.items()
    ]
    return [
        found[0],
        ManifestEntry("7-1-0009", "a dog", a1=Recording("7-1-0009", path=str(tmp_path / "7-1-0009.wav"))),
        *found[1:],
    ]


def test_batches_hold_each_item_once_longest_first():
    batches = list(in_batches([3, 1, 4, 1, 5, 9], lambda n: n, 4, "test"))
    assert batches == [[9, 5, 4, 3], [1, 1]]
    with pytest.raises(ValueError, match="--batch_size 0"):
        next(in_batches([1], lambda n: n, 0, "test"))


@pytest.mark.parametrize("name", ["A1T1", "A1A2"])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batched_replies_are_those_of_single_questions(entries, name, batch_size):
    model = toy_model()
    found, skipped = replies(model, TASKS[name], entries, decoding=DECODING, batch_size=batch_size)
    assert list(found) == list(TEXTS)  # in the order of the entries
    assert dict(skipped.reasons) == {"unreadable": 1} and "7-1-0009" in str(skipped)
    for entry in entries:
        if entry.id in found:
            alone = Decoder(model, decoding=DECODING).answers(TASKS[name], [Question(wav=entry.a1.load(16000))])[0]
            assert found[entry.id].text == model.llm.tokenizer.decode(alone.text)
            assert torch.equal(found[entry.id].codes, alone.codes)


def test_text_tasks_read_the_text():
    found, _ = replies(
        toy_model(), TASKS["T1A1"], [ManifestEntry("a", "the cat"), ManifestEntry("b", "yes")], decoding=DECODING
    )
    assert found["a"].text == "the cat" and found["a"].codes.shape[0] == 3


def test_what_cannot_be_asked_is_counted():
    model = toy_model()
    model.llm.max_positions = 10
    entries = [ManifestEntry("a", "the cat"), ManifestEntry("b", "the cat sees the dog " * 9)]
    found, skipped = replies(model, TASKS["T1A1"], entries, decoding=DECODING)
    assert list(found) == ["a"] and dict(skipped.reasons) == {"refused": 1}


def evaluated(entries, tmp_path, groups):
    options = {"batch_size": 2, "normalize": plain, "folder": tmp_path}
    respond = by_model(Decoder(toy_model(), decoding=DECODING), TASKS["A1T1"])
    return evaluate_split(respond, "test-clean", entries, groups=groups, **options)


def test_split_is_scored_whole_and_by_group(entries, tmp_path):
    result = evaluated(entries, tmp_path, {"templates": r"^\d+-1-", "strings": r"^\d+-2-", "nobody": "^x"})
    assert {name: rates.utterances for name, rates in result.rates.items()} == {"all": 3, "templates": 2, "strings": 1}
    lines = [json.loads(line) for line in (tmp_path / "hypotheses_test-clean.jsonl").read_text().splitlines()]
    assert {line["id"]: line["reference"] for line in lines} == TEXTS
    assert "%WER" in (tmp_path / "wer_test-clean.txt").read_text()
    table = write_report(tmp_path, [result], about={"normalizer": "plain"}, published=None)
    assert "test-clean, templates | 2" in table and "Published" not in table and "1 unreadable" in table
    stored = json.loads((tmp_path / "asr.json").read_text())["splits"]["test-clean"]
    assert stored["groups"]["all"]["words"] == 7 and stored["skipped"] == {"unreadable": 1}


def test_references_without_a_word_are_named(entries, tmp_path):
    result = evaluated([replace(entries[0], t1="..."), *entries[2:]], tmp_path, {})
    assert "- test-clean, empty references: 1 (their words are insertions)" in write_report(
        tmp_path, [result], about={}, published=None
    )
    stored = json.loads((tmp_path / "asr.json").read_text())["splits"]["test-clean"]["groups"]["all"]
    assert stored["empty_references"] == 1
    assert "empty references" not in write_report(
        tmp_path, [evaluated(entries, tmp_path, {})], about={}, published=None
    )


def test_means_over_splits_count_each_split_the_same(entries, tmp_path):
    one = evaluated(entries, tmp_path, {"templates": r"^\d+-1-"})
    whole, templates = one.rates["all"], one.rates["templates"]
    other = replace(whole, utterances=900, wer=whole.wer + 10, exact=100.0)
    two = replace(one, split="b", rates={"all": other, "templates": replace(templates, wer=templates.wer + 4)})
    table = write_report(tmp_path, [one, two], about={}, published=None, mean_over="speakers")
    stored = json.loads((tmp_path / "asr.json").read_text())["means"]
    assert stored["all"]["wer"] == pytest.approx(whole.wer + 5, abs=1e-3) and stored["all"]["splits"] == 2
    assert stored["templates"]["wer"] == pytest.approx(templates.wer + 2, abs=1e-3)
    assert f"| mean of 2 speakers |  | {whole.wer + 5:.1f} |" in table
    assert f"| mean of 2 speakers, templates |  | {templates.wer + 2:.1f} |" in table
    fewer = replace(two, rates={"all": other})  # without that group
    write_report(tmp_path, [one, fewer], about={}, published=None, mean_over="speakers")
    assert set(json.loads((tmp_path / "asr.json").read_text())["means"]) == {"all"}
    for results, over in (([one, two], None), ([one], "speakers")):
        assert "mean of 1" not in write_report(tmp_path, results, about={}, published=None, mean_over=over)
        assert "means" not in json.loads((tmp_path / "asr.json").read_text())


def test_published_figure_only_beside_a_split_of_the_same_size(entries, tmp_path):
    result = evaluated(entries, tmp_path, {})
    assert published_wer(result, {"test-clean": {"wer": 4.5, "utterances": 3}}) == 4.5
    assert published_wer(result, {"test-clean": {"wer": 4.5, "utterances": 2620}}) is None
    assert published_wer(result, {"test-other": {"wer": 9.7, "utterances": 3}}) is None
    table = write_report(tmp_path, [result], about={}, published={"test-clean": {"wer": 4.5, "utterances": 3}})
    assert "Published WER %" in table and "| 4.5 |" in table


def test_a_split_without_any_readable_recording_is_refused(entries, tmp_path):
    with pytest.raises(ValueError, match="test-clean: no recording could be read"):
        evaluated([entry for entry in entries if entry.id == "7-1-0009"], tmp_path, {})


@pytest.mark.parametrize("corpus", ["FSDD", "LibriSpeech", "MLS"])
def test_each_recipe_says_what_is_published_of_baselines(corpus):
    hparams = read_tree(ROOT / "recipes" / corpus / "ASR" / "hparams" / "eval.yaml")
    found = published_figures({**hparams, "baseline": "whisper_small", "baseline_weights": None})
    assert (found is not None) == (corpus == "LibriSpeech")


@pytest.mark.parametrize(
    ("baseline", "weights", "found"),
    [(None, None, "system"), ("a", None, "a"), ("a", "a.pt", None), ("b", None, None)],
)
def test_published_figures_are_those_of_what_is_scored(baseline, weights, found):
    hparams = {"published": "system", "published_baselines": {"a": "a"}}
    hparams |= {"baseline": baseline, "baseline_weights": weights}
    assert published_figures(hparams) == found
    assert published_figures({**hparams, "published_baselines": None}) == (found if baseline is None else None)
