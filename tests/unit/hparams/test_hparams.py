"""Test the choice of parts by name, overrides of options, the command line, and safe loading of untrusted YAML."""

from __future__ import annotations

import pytest

from omnikit import hparams
from omnikit.hparams.command_line import split_command_line

RECIPE = """\
seed: 1
output_folder: results/<seed>
data_folder: {placeholder}
use_noise: true
lr: 1e-4
optim:
  lr: !ref <lr>
  betas: [0.9, 0.99]
codec: !applyref:omnikit.hparams.pick {{part: codec, name: big}}
encoder: !applyref:omnikit.hparams.pick {{part: encoder, name: plain, size: 5}}
own: !new:standins.Thing
  size: !ref <seed>
model: !new:standins.Joined
  codec: !ref <codec>
  encoder: !ref <encoder>
"""
PARTS = {
    "codec/big.yaml": "!new:standins.Thing\nsize: 8\nweights: null\n",
    "codec/nested.yaml": "!new:standins.Thing\nsize: 2\ninner:\n  depth: 1\n  wide: !ref <size>\n",
    "codec/file.yaml": "!new:standins.Thing\ninner: !applyref:omnikit.hparams.packaged {file: a/b}\n",
    "codec/needs_more.yaml": "!new:no_such_package.Thing {}\n",
    "encoder/plain.yaml": "!new:standins.Thing {}\n",
    "adapter/partial.yaml": "!name:standins.Thing\nsize: 4\n",
}


@pytest.fixture(autouse=True)
def part_folder(tmp_path, monkeypatch):
    """Replace the folder `hparams/` by a folder of part files with stand-in classes, and return the folder."""
    for name, text in PARTS.items():
        file = tmp_path / "parts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr("omnikit.hparams.named_parts.part_files", lambda: tmp_path / "parts")
    return tmp_path / "parts"


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(placeholder="data"))
    return str(file)


def load(recipe, *flags):
    return hparams.load_recipe([recipe, *flags]).hparams


def refused(recipe, *flags) -> str:
    with pytest.raises(ValueError) as error:
        load(recipe, *flags)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_defaults_build_one_shared_object_per_part(recipe):
    built = load(recipe)
    assert built["codec"].size == 8
    assert built["encoder"].size == 5
    assert built["model"].codec is built["codec"]
    assert built["optim"]["lr"] == 1e-4


def test_a_name_swaps_and_dotted_keys_reach_the_chosen_part(recipe):
    flags = "--codec nested --codec.inner.depth 7 --codec.size=9 --encoder.weights a/b=c"
    built = load(recipe, *flags.split())
    assert built["codec"].inner == {"depth": 7, "wide": 9}
    assert built["encoder"].weights == "a/b=c"
    assert built["encoder"].size == 5


def test_a_user_brings_a_class_or_a_part_file(recipe, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("!new:standins.Thing\nsize: 77\n")
    built = load(recipe, "--own.size", "6", "--own.weights", "w", "--codec", str(mine))
    assert (built["own"].size, built["own"].weights, built["codec"].size) == (6, "w", 77)


def test_switches_numbers_and_nothing_are_read(recipe):
    built = load(recipe, "--use_noise", "false", "--lr", "3", "--seed=null", "--optim.betas", "[1, 2]")
    assert (built["use_noise"], built["lr"], built["seed"], built["optim"]["betas"]) == (False, 3, None, [1, 2])
    assert load(recipe, "--use_noise=true")["use_noise"] is True


@pytest.mark.parametrize(
    ("flag", "text", "number"),
    [
        ("seed", "1e3", 1000), ("seed", "3000000000", 3000000000), ("codec.size", "4.0", 4), ("use", "1e3", 1000),
        ("lr", "1e3", 1000.0), ("optim", "{lr: 2e0, betas: [1.0, 0.5]}", {"lr": 2, "betas": [1.0, 0.5]}),
    ],
)  # fmt: skip
def test_a_float_without_a_fraction_is_a_whole_number_where_no_float_stands(recipe, tmp_path, flag, text, number):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(placeholder="data") + "use: null\n")
    found = load(recipe, f"--{flag}", text)
    value = found["codec"].size if flag == "codec.size" else found[flag]
    assert value == number and type(value) is type(number)
    assert refused(recipe, "--seed", "1.5") == "--seed 1.5: must be a whole number, 0 or more and at most 4294967295"


def test_a_packaged_file_may_be_replaced(recipe):
    assert load(recipe, "--codec", "file")["codec"].inner.endswith("omnikit/a/b")
    assert load(recipe, "--codec", "file", "--codec.inner", "mine")["codec"].inner == "mine"


def test_a_switch_of_the_recipe_needs_no_value(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("check: false\nseed: 1\n")
    for words, value in ((["--check"], True), (["--check", "false"], False), (["--check", "--seed", "2"], True)):
        assert split_command_line([str(recipe), *words])[2]["check"] is value
    with pytest.raises(ValueError, match="--seed: a value is missing"):
        split_command_line([str(recipe), "--seed", "--check"])


def test_partials_are_finished_by_the_model():
    node = hparams.pick("adapter", "partial", size=6)
    assert node["size"] == 6
    assert node.tag.value == "!name:standins.Thing"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--codec", "bog"], ["--codec bog", "did you mean big?", "big, file, needs_more, nested"]),
        (["--codec.sise", "3"], ["--codec.sise", "did you mean size?", "inner, size, weights"]),
        (["--codec", "nested", "--codec.inner.dept", "3"], ["--codec.inner.dept", "did you mean depth?"]),
        (["--codec.size.x", "3"], ["--codec.size", "no options"]),
        (["--codec.part", "llm"], ["--codec.part"]),
        (["--codec", "needs_more"], ["needs_more", "no_such_package"]),
        (["--optim.lrr", "3"], ["--optim.lrr", "did you mean lr?"]),
        (["--sead", "3"], ["--sead", "did you mean seed?"]),
        (["--own.sizes", "3"], ["--own.sizes", "did you mean size?"]),
        (["--own", "big"], ["--own big", "!new:standins.Thing"]),
        (["--optim", "3"], ["--optim 3", "--optim.lr"]),
        (["--use_noise", "off"], ["--use_noise off", "true or false"]),
        (["--lr", "fast"], ["--lr fast", "number"]),
        (["--codec", "!new:standins.Thing {size: 1}"], ["--codec", "!new:standins.Thing"]),
        (["--seed", "[1"], ["--seed [1", "YAML"]),
        (["--seed"], ["--seed", "missing"]),
        (["stray"], ["stray", "usage"]),
    ],
)
def test_bad_flags_are_refused_in_one_line(recipe, flags, words):
    message = refused(recipe, *flags)
    for word in words:
        assert word in message


def test_a_missing_package_is_named(recipe, tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text("import some_package.inner\n")
    (tmp_path / "own.yaml").write_text("!new:own_module.Thing {}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = refused(recipe, "--codec", str(tmp_path / "own.yaml"))
    assert "needs the Python package 'some_package', which is not installed: pip install some_package" in message


def test_bad_files_are_refused(tmp_path):
    assert "none.yaml: no such file" in refused(str(tmp_path / "none.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\nb: 2")
    assert "broken.yaml: line" in refused(str(broken))
    broken.write_text("just words")
    assert "mapping" in refused(str(broken))
    with pytest.raises(ValueError, match="usage"):
        hparams.load_recipe([])


def test_a_placeholder_must_be_given(recipe, tmp_path):
    file = tmp_path / "holes.yaml"
    file.write_text(RECIPE.format(placeholder="!PLACEHOLDER"))
    assert "--data_folder: required" in refused(str(file))
    assert load(str(file), "--data_folder", "x")["data_folder"] == "x"


def test_override_files_come_before_flags(recipe, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("codec: nested\ncodec.size: 11\noptim: {lr: !ref <seed>}\nlr: 2\n")
    built = load(recipe, str(more), "--lr", "3")
    assert (built["codec"].size, built["optim"]["lr"], built["lr"]) == (11, 1, 3)


def test_later_settings_win_whatever_their_spelling(recipe, tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("codec.size: 1\ncodec: {name: nested, size: 2}\noptim: {lr: 5, betas: [1]}\n")
    second.write_text("optim: {lr: 6}\n")
    built = load(recipe, str(first), str(second))
    assert (built["codec"].size, built["optim"]) == (2, {"lr": 6, "betas": [1]})
    assert load(recipe, str(first), "--codec.size", "3")["codec"].size == 3


TABLE = """\
folder: data
sources:
  one: {manifest: !ref <folder>/one.csv, limit: null}
  two: {manifest: !ref <folder>/two.csv, limit: 3}
"""


def test_tables_of_named_entries_can_lose_and_gain_some(tmp_path):
    file, more = tmp_path / "table.yaml", tmp_path / "more.yaml"
    file.write_text(TABLE)
    more.write_text("sources:\n  one: null\n  own: {manifest: !ref <folder>/own.csv, limit: null}\n")
    found = load(str(file), str(more), "--folder", "x", "--sources.own.limit", "5")["sources"]
    assert found == {
        "one": None,
        "two": {"manifest": "x/two.csv", "limit": 3},
        "own": {"manifest": "x/own.csv", "limit": 5},
    }
    again = load(str(file), str(more), "--sources.one.limit", "2")["sources"]
    assert again["one"] == {"manifest": "data/one.csv", "limit": 2}


def test_a_misspelt_entry_of_a_table_is_refused(tmp_path):
    file = tmp_path / "table.yaml"
    file.write_text(TABLE)
    assert "did you mean two?" in refused(str(file), "--sources.tow.limit", "5")


def test_command_line_knows_exact_run_options_only():
    words = "r.yaml --test 4 --debug --device=cpu --precision bf16 --max_grad_norm -1 --dev x --output_folder /a/b=c"
    words += " --note=d=e --codec.k null --ckpt_interval_steps 7"
    path, run_opts, overrides = split_command_line([*words.split(), "--opt", "[1, 2]"])
    assert path == "r.yaml"
    assert run_opts == {
        "debug": True, "device": "cpu", "precision": "bf16", "max_grad_norm": -1.0, "ckpt_interval_steps": 7,
    }  # fmt: skip
    assert overrides == {
        "test": 4, "dev": "x", "output_folder": "/a/b=c", "note": "d=e", "codec.k": None, "opt": [1, 2],
    }  # fmt: skip


def test_checkpoints_may_be_less_than_a_minute_apart():
    assert split_command_line(["r.yaml", "--ckpt_interval_minutes", "0.02"])[1] == {"ckpt_interval_minutes": 0.02}


def test_run_options_take_whole_numbers_as_1e3():
    value = split_command_line(["r.yaml", "--debug_batches", "1e3"])[1]["debug_batches"]
    assert value == 1000 and isinstance(value, int)


@pytest.mark.parametrize(
    ("flags", "word"),
    [(["--precision", "int3"], "fp32"), (["--debug_batches", "x"], "whole number"), (["--debug=maybe"], "true")],
)
def test_bad_run_options_are_refused(flags, word):
    with pytest.raises(ValueError, match=word):
        split_command_line(["r.yaml", *flags])


def test_the_dumped_parts_build_the_same_without_part_files(recipe, part_folder, monkeypatch):
    first = hparams.load_recipe([recipe, "--codec", "nested", "--codec.size", "9", "--encoder.weights", "somewhere"])
    assert first.hparams["model"].recipe == first.parts
    for file in part_folder.rglob("*.yaml"):
        file.unlink()
    again = hparams.safe_load(first.parts, "hparams.yaml", allow=("standins",))
    assert again["codec"].inner == {"depth": 1, "wide": 9}
    assert again["encoder"].size == 5
    assert again["encoder"].weights is None  # a built model has its own weights
    assert again["model"].codec is again["codec"]
    assert set(again) == {"codec", "encoder", "model", "part_names"}
    assert again["part_names"] == {"encoder": "plain", "codec": "nested"}


@pytest.mark.parametrize(
    "text",
    [
        "a: !apply:os.system [touch {mark}]",
        "a: !applyref:os.system [touch {mark}]",
        "a: !!python/object/apply:os.system [touch {mark}]",
        '%TAG !x! tag:yaml.org,2002:python/object/\n---\na: !x!apply:os.system ["touch {mark}"]',
        "a: !new:subprocess.Popen {{args: [touch, {mark}]}}",
        "a: !new:omnikit.model.nn.Linear {{in_features: 1, out_features: 1}}",
        "a: !name:omnikit.codecs.os.system {{}}",
        "a: !name:omnikit.model.torch {{}}",
        "a: !new:omnikit.model.NoSuchClass {{}}",
        "a: !new:omnikit.hparams.recipe.Recipe {{}}",
        "a: !new:standins.Thing {{}}",
        "a: !module:os",
        "a: !include:/etc/passwd {{}}",
        "a: [1, {{b: !ref <a>}}]",
        "a: !new:omnikit.model.OmniLM [1]",
        "? !new:subprocess.Popen {{args: [touch, {mark}]}}\n: 1",
        "- 1",
    ],
)
def test_a_strangers_yaml_runs_nothing(text, tmp_path):
    mark = tmp_path / "ran"
    with pytest.raises(ValueError, match=r"hparams\.yaml"):
        hparams.safe_load(text.format(mark=mark), "hparams.yaml")
    assert not mark.exists()


def test_options_that_name_a_place_are_for_classes_of_ones_own():
    """YAML options of a class that the user allowed may name files; those of omnikit's own classes may not."""
    own = "a: !new:standins.Thing {where: ../words.txt}\n"
    ours = "b: !name:omnikit.adapters.MLPAdapter {hidden: ../a}\n"
    hparams.check_safe(own, "f", allow=("standins",))
    for text, allow in ((ours, ()), (own + ours, ("standins",))):
        with pytest.raises(ValueError, match=r"f: b.hidden '../a': a checkpoint reads its own files alone"):
            hparams.check_safe(text, "f", allow=allow)


def test_tuples_are_read_without_running_what_is_in_them(tmp_path):
    mark = tmp_path / "ran"
    assert hparams.safe_load("a: (1, x)", "f") == {"a": (1, "x")}
    assert hparams.safe_load('a: "(1, x)"', "f") == {"a": "(1, x)"}
    with pytest.raises(ValueError):
        hparams.safe_load(f"a: (!!python/object/apply:os.system [touch {mark}])", "f")
    assert not mark.exists()
