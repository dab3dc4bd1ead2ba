"""Tests of prepared suites: they keep what was published, and folders of another suite or version are refused."""

from __future__ import annotations

import json

import pytest

from omnikit.data.manifest_reader import Recording, read_manifest
from omnikit.data.skipped import Remark
from omnikit.evaluate.suites.items import NO_TEXT, SuiteItem, chosen_sets, read_items, write_items
from omnikit.evaluate.suites.published_files import jsonl_rows, recording
from tests.suites.spoken import spoken


def items(folder):
    (folder / "a.wav").write_bytes(spoken("what is one plus one"))
    yield SuiteItem("x/1", "x", "what is one plus one", ("two", "2"), fields={"深": ["\u2028", None]}, language="de",
                    audio=Recording("x/1", path=str(folder / "a.wav")))  # fmt: skip
    yield SuiteItem("y/1", "y", "", audio=Recording("y/1", table=[spoken("two", 1, "FLAC")]))
    yield SuiteItem("y/2", "y", "gone", audio=Recording("y/2", path=str(folder / "no.wav")))
    yield Remark("no text", "y/3")
    yield SuiteItem("y/4", "y", "not a character: \ud800")


def test_a_prepared_suite_keeps_everything(tmp_path):
    written = write_items(tmp_path / "data", "Suite", "layout 1", items(tmp_path))
    found = read_items(tmp_path / "data", "Suite", "layout 1")
    assert [item.id for item in found.items] == ["x/1", "y/1"] and found.sets == ("x", "y")
    assert found.about == written.about and [item.id for item in found.items] == [item.id for item in written.items]
    assert found.about["sets"] == {"x": 1, "y": 1}
    assert found.about["skipped"] == {"missing": 1, "no text": 1, "not UTF-8": 1}
    first, second = found.items
    assert (first.references, first.language, first.fields) == (("two", "2"), "de", {"深": ["\u2028", None]})
    assert second.audio.path.endswith("audio/y%2F1.flac")
    entries = read_manifest(found.manifest)
    assert [(e.id, e.t1, e.kind, e.accepted) for e in entries] == [
        ("x/1", "what is one plus one", "x", ("two", "2")), ("y/1", NO_TEXT, "y", ()),
    ]  # fmt: skip
    assert all(entry.a1.load(16000).numel() > 1000 for entry in entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "Other"}, "holds the suite 'Other', not 'Suite'"),
        ({"layout": "layout 0"}, "was prepared from layout 'layout 0', this version reads 'layout 1'"),
        ({"format": 0}, "was prepared from format 0, this version reads 1"),
        ({"sets": {"x": 2}}, "does not hold the questions that suite.json counts"),
    ],
)
def test_a_folder_of_another_version_is_refused(tmp_path, change, message):
    write_items(tmp_path, "Suite", "layout 1", list(items(tmp_path))[:2])
    about = json.loads((tmp_path / "suite.json").read_text())
    (tmp_path / "suite.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(ValueError, match=message) as error:
        read_items(tmp_path, "Suite", "layout 1")
    assert "\n" not in str(error.value)


def test_bad_folders_and_rows_are_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no suite\.json there; prepare the suite"):
        read_items(tmp_path, "Suite", "layout 1")
    with pytest.raises(ValueError, match="two questions have the id 'x/1'"):
        write_items(tmp_path, "Suite", "1", list(items(tmp_path))[:1] * 2)
    with pytest.raises(ValueError, match=r"no question can be used; skipped: 1 no text \(such as y/3\)"):
        write_items(tmp_path, "Suite", "1", list(items(tmp_path))[3:4])
    with pytest.raises(ValueError, match=r"--sets z: no such set \(choices: x, y\)"):
        chosen_sets(["x", "y"], ["y", "z"])
    (tmp_path / "rows.jsonl").write_text('{"id": 1}\n{"id": 2, "text": "a"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl: line 1: has no 'text'; it has id: another version"):
        list(jsonl_rows(tmp_path / "rows.jsonl", ["id", "text"]))
    with pytest.raises(ValueError, match="q: its recording is neither a path nor embedded bytes"):
        recording("q", {"array": []}, tmp_path)
