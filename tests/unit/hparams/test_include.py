"""Test recipes that include another YAML file by `<<: !include:base.yaml {}`."""

from __future__ import annotations

import pytest

from omnikit.hparams import load_recipe
from omnikit.hparams.include import read_recipe
from omnikit.hparams.recipe import settings_of

BASE = """
name: !PLACEHOLDER
folder: results
file: !ref <folder>/<name>.txt
table: {a: {size: 1}, b: {size: 2}}
wrapper: !name:textwrap.TextWrapper {tabsize: 4, width: 70}
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)

    def call(text: str, name: str = "recipe.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return call


def settings(path: str, *flags: str) -> dict:
    return settings_of(load_recipe([path, *flags]).text)


def test_own_entries_replace_those_of_the_other_file_and_references_see_them(write):
    path = write("<<: !include:base.yaml {}\nname: mine\nwrapper.width: 30\nnew: !ref <file>\n")
    found = settings(path)
    assert found["file"] == found["new"] == "results/mine.txt"
    assert found["wrapper.width"] == 30 and found["wrapper.tabsize"] == 4
    assert list(read_recipe(path)) == ["name", "folder", "file", "table", "wrapper", "new"]
    assert load_recipe([path]).hparams["wrapper"]().width == 30


def test_entries_stay_above_and_below_what_is_taken_in(write):
    assert list(read_recipe(write("folder: b\nfirst: 1\n<<: !include:base.yaml {}\nlast: 2\nname: c\n"))) == [
        "first", "name", "folder", "file", "table", "wrapper", "last",
    ]  # fmt: skip


def test_a_tagged_entry_replaces_all_of_the_other_one(write):
    path = write("<<: !include:base.yaml {}\nname: c\nwrapper: !name:textwrap.TextWrapper {width: 9}\n")
    assert load_recipe([path]).hparams["wrapper"]().width == 9
    assert "wrapper.tabsize" not in settings(path)


def test_tables_get_entries_and_lose_them(write):
    found = settings(write("<<: !include:base.yaml {}\nname: c\ntable: {a: null, c: {size: 3}}\n"))
    assert found["table.a"] is None and found["table.b.size"] == 2 and found["table.c.size"] == 3


def test_flags_and_files_of_overrides_work_as_ever(write):
    path, more = write("<<: !include:base.yaml {}\nname: c\n"), write("table.b.size: 9\n", "more.yaml")
    found = settings(path, more, "--wrapper.width", "25")
    assert found["table.b.size"] == 9 and found["wrapper.width"] == 25
    with pytest.raises(ValueError, match=r"--wraper: no such option; did you mean wrapper\?"):
        load_recipe([path, "--wraper", "1"])
    with pytest.raises(ValueError, match="--name: required by"):
        load_recipe([write("<<: !include:base.yaml {}\n", "without.yaml")])


def test_what_is_taken_in_may_itself_take_in_a_file(write):
    write("<<: !include:base.yaml {}\nname: middle\nfolder: other\n", "middle.yaml")
    found = settings(write("<<: !include:middle.yaml {}\nname: mine\n"))
    assert found["file"] == "other/mine.txt"


def test_files_of_the_package_are_found_from_anywhere(write):
    found = read_recipe(write("<<: !include:training.yaml {}\nstage: own\n"))
    assert found["stage"] == "own" and found["encoder"]["name"] == "whisper_small" and "seed" in found


def test_the_saved_copy_needs_no_other_file(write, tmp_path):
    path = write("<<: !include:base.yaml {}\nname: mine\n")
    text = load_recipe([path, "--table.a.size", "7"]).text
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "hyperparams.yaml"
    copy.write_text(text)
    assert settings(str(copy)) == settings_of(text)
    assert settings(str(copy))["table.a.size"] == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<<: !include:bass.yaml {}\n", "recipe.yaml: !include:bass.yaml: no such file, neither beside it nor in"),
        ("<<: !include:recipe.yaml {}\n", "recipe.yaml: .*includes this file again"),
        ("<<: !include:base.yaml {name: x}\n", "recipe.yaml: << takes one file"),
        ("<<: [!include:base.yaml {}, !include:base.yaml {}]\n", "recipe.yaml: << takes one file"),
        ("<<: {name: x}\n", "recipe.yaml: << takes one file"),
        ("<<: !include:base.yaml {}\nwrapper.widht: 1\n", "recipe.yaml: --wrapper.widht: no such option"),
        ("<<: !include:broken.yaml {}\n", "broken.yaml: line 2"),
    ],
)
def test_errors_name_the_file(write, text, words):
    write("a: [\n", "broken.yaml")
    with pytest.raises(ValueError, match=words):
        load_recipe([write(text)])


def test_a_file_of_overrides_takes_in_no_other(write):
    with pytest.raises(ValueError, match=r"more.yaml: only a recipe may include another file \(<<\)"):
        load_recipe([write(BASE), write("<<: !include:base.yaml {}\n", "more.yaml")])


def test_a_file_under_a_key_is_looked_for_beside_the_recipe(write, tmp_path):
    (tmp_path / "below").mkdir()
    write("inner: 1\n", "below/inner.yaml")
    write("key: !include:inner.yaml {}\n", "below/outer.yaml")
    with pytest.raises(ValueError, match=r"below/outer.yaml: key: !include:inner.yaml would be looked for beside"):
        load_recipe([write("<<: !include:below/outer.yaml {}\n")])
    assert settings(write("<<: !include:outer.yaml {}\n", "below/recipe.yaml")) == {"key.inner": 1}
