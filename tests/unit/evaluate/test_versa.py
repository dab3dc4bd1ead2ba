"""Test the files of VERSA: its input as its own loader splits it, and its results in both forms."""

from __future__ import annotations

import json

import pytest

from omnikit.evaluate.versa import SpokenAnswer, read_versa, versa_key, versa_scores, write_versa

COUNTS = {"delete": 1, "insert": 0, "replace": 1, "equal": 2}


def split(path) -> dict[str, str]:
    """Return the keys and values of a file as VERSA's `audio_loader_setup` and `main` split them."""
    return dict(line.strip().split(maxsplit=1) for line in path.read_text().splitlines())


def test_input_is_split_as_written(tmp_path):
    wav = tmp_path / "a b.wav"
    names = ["sd-qa/1", "set/name with spaces 100%", "zh/三"]
    texts = ["Two  words", "a\nline", "好"]
    spoken = [SpokenAnswer(*each) for each in zip(names, [wav] * 3, texts, strict=True)]
    assert write_versa(tmp_path / "versa", [*spoken, SpokenAnswer("silent", wav, " \n")]) == 3
    keys = [versa_key(name) for name in names]
    assert keys[0] == names[0] and len(set(keys)) == 3
    assert split(tmp_path / "versa" / "wav.scp") == dict.fromkeys(keys, str(wav))
    assert split(tmp_path / "versa" / "text") == dict(zip(keys, ["Two words", "a line", "好"], strict=True))
    with pytest.raises(ValueError, match="two utterances have the id 'sd-qa/1'"):
        write_versa(tmp_path / "versa", spoken[:1] * 2)


def test_results_of_several_files_are_put_together(tmp_path):
    first = {"key": "a", "utmos": 4.0, "whisper_hyp_text": "two words", "pesq": None}
    counts = {f"whisper_wer_{kind}": count for kind, count in COUNTS.items()}
    (tmp_path / "1.result.gpu.txt").write_text(f"{json.dumps(first)}\n\n{json.dumps({'key': 'b', 'utmos': 3.0})}\n")
    old = "{'key': 'a', 'sir': inf, 'mcd': -inf, 'dns': nan, " + str(counts)[1:]  # as VERSA wrote it before JSON
    (tmp_path / "1.result.cpu.txt").write_text(old + "\n")
    (tmp_path / "notes.md").write_text("no result")
    results = read_versa(tmp_path)
    assert results.keys() == {"a", "b"} and results["b"] == {"utmos": 3.0}
    scores = versa_scores(list(results.values()))
    assert list(scores) == ["whisper_wer %", "utmos"]  # no metric without a finite value
    assert (scores["utmos"].value, scores["utmos"].utterances, scores["utmos"].better) == (3.5, 2, "higher")
    assert (scores["whisper_wer %"].value, scores["whisper_wer %"].better) == (50.0, "lower")


def test_error_rates_are_over_all_words():
    lines = [{f"espnet_cer_{kind}": value for kind, value in each.items()} for each in (COUNTS, COUNTS | {"equal": 6})]
    assert versa_scores(lines)["espnet_cer %"].value == pytest.approx(100 * 4 / 12)
    assert versa_scores([{f"espnet_cer_{kind}": 0 for kind in COUNTS}]) == {}


@pytest.mark.parametrize("line", ["[1]", "{'utmos': 3}", "utmos: 3.0", '{"key": '])
def test_what_is_no_result(tmp_path, line):
    file = tmp_path / "result.txt"
    file.write_text(f"{json.dumps({'key': 'a'})}\n{line}\n")
    with pytest.raises(ValueError, match=r"--versa .*result\.txt: line 2 is no result of VERSA"):
        read_versa(file)


def test_no_results(tmp_path):
    with pytest.raises(ValueError, match=r"--versa .*: no \*\.jsonl, .* there"):
        read_versa(tmp_path)
    with pytest.raises(ValueError, match=r"--versa .*none: no such file"):
        read_versa(tmp_path / "none")
