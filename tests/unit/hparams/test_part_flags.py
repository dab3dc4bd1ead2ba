"""Test the command-line flags for all parts at once, and the names of chosen parts in the results of a run."""

from __future__ import annotations

import pytest

from omnikit.hparams import load_recipe, names_of, part_files, resolve
from omnikit.hparams.yaml_tree import read_tree_text

SYSTEM = str(part_files() / "system.yaml")
RECIPE = """\
choice: ""
output_folder: !ref results/a<choice>
initial_weights: !ref results/b<choice>
encoder: !new:standins.Thing {{size: {size}, weights: some/encoder}}
codec: !applyref:omnikit.hparams.pick {{part: codec, name: {codec}, weights: own/weights}}
model: !new:standins.Joined
  codec: !ref <codec>
  encoder: !ref <encoder>
"""


@pytest.fixture
def own(tmp_path):
    """Return a part file with the options `size` and `weights`, which published parts have."""
    file = tmp_path / "own.yaml"
    file.write_text("!new:standins.Thing\nsize: published\nweights: some/where\n")
    return str(file)


@pytest.fixture
def recipe(tmp_path, own):
    def write(size="published", more="") -> str:
        file = tmp_path / "recipe.yaml"
        file.write_text(more + RECIPE.format(size=size, codec=own))
        return str(file)

    return write


def system(**settings):
    """Return the YAML tree of hparams/system.yaml after the given settings have been applied."""
    return read_tree_text(resolve(SYSTEM, settings)[1], SYSTEM)


def refused(path, *flags) -> str:
    with pytest.raises(ValueError) as error:
        load_recipe([path, *flags])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_pretrained_no_part_reads_weights():
    chosen = {"encoder": "whisper_tiny", "codec": "snac_24khz", "llm": "qwen2_0.5b"}
    usual, bare = system(**chosen), system(**chosen, pretrained=False)
    assert all(usual[kind]["weights"] for kind in chosen)
    assert [bare[kind]["weights"] for kind in chosen] == [None] * 3
    assert bare["llm"]["tokenizer"] == "bytes"
    assert system(**chosen, pretrained=True) == usual


def test_what_is_named_stands_beside_the_flags(own):
    named = {"codec": own, "codec.weights": "mine", "llm": "qwen2_0.5b", "llm.tokenizer": "a/file.model"}
    bare = system(**named, **{"codec.size": "published"}, size="tiny", pretrained=False)
    assert (bare["codec"]["weights"], bare["codec"]["size"]) == ("mine", "published")
    assert bare["llm"]["tokenizer"] == "a/file.model"
    assert system(codec={"name": own, "weights": "mine"}, pretrained=False)["codec"]["weights"] == "mine"


def test_a_recipes_own_tokenizer_file_stays():
    assert system(pretrained=False)["llm"]["tokenizer"].endswith("tokenizer.model")
    assert system(pretrained=False, llm="mini")["llm"]["tokenizer"] == "bytes"
    published = {"llm.tokenizer": "some/repository"}
    assert system(**published, pretrained=False)["llm"]["tokenizer"] == "some/repository"


def test_a_recipes_own_tokenizer_from_the_hub_gives_way(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("llm: !applyref:omnikit.hparams.pick {part: llm, name: qwen2_0.5b}\n")
    text = resolve(str(file), {"pretrained": False})[1]
    assert read_tree_text(text, "")["llm"]["tokenizer"] == "bytes"


def test_tiny_is_for_parts_that_have_sizes(recipe, own):
    built = load_recipe([recipe(), "--size", "tiny"]).hparams
    assert (built["encoder"].size, built["codec"].size) == ("tiny", "tiny")
    assert load_recipe([recipe(size=5), "--size", "tiny"]).hparams["encoder"].size == 5
    assert load_recipe([recipe(size="tiny"), "--size", "published"]).hparams["encoder"].size == "published"
    assert system(codec=own, size="tiny")["encoder"] == system()["encoder"]


def test_flags_reach_a_class_that_stands_in_the_recipe(recipe):
    built = load_recipe([recipe(), "--pretrained", "false"]).hparams
    assert (built["encoder"].weights, built["codec"].weights) == (None, None)


def test_a_key_of_the_recipe_is_no_such_flag(recipe):
    own_key = load_recipe([recipe(more="size: 3\n"), "--size", "4"]).hparams
    assert (own_key["size"], own_key["codec"].size) == (4, "published")


def test_a_file_without_parts_knows_no_such_flag(tmp_path):
    file = tmp_path / "evaluate.yaml"
    file.write_text("limit: 3\nstrategy: !applyref:omnikit.hparams.pick {part: strategy, name: parallel}\n")
    assert "--size: no such option" in refused(str(file), "--size", "tiny")


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [("size", "small", "choices: published, tiny"), ("pretrained", "3", "must be true or false")],
)
def test_bad_values_are_refused(recipe, flag, value, words):
    message = refused(recipe(), f"--{flag}", value)
    assert f"--{flag} {value}" in message
    assert words in message


def test_the_folders_of_a_run_name_what_flags_chose(recipe, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("!new:standins.Thing {}\n")
    path = recipe()
    usual = load_recipe([path]).hparams
    assert (usual["output_folder"], usual["initial_weights"]) == ("results/a", "results/b")
    run = load_recipe([path, "--codec", str(other), "--codec.weights", "x", "--size", "tiny"])
    assert run.hparams["output_folder"] == "results/a-codec=other-size=tiny"
    assert run.hparams["initial_weights"] == "results/b-codec=other-size=tiny"
    assert run.overrides["choice"] == "-codec=other-size=tiny"  # and so in SpeechBrain's hyperparams.yaml
    given = load_recipe([path, "--codec", str(other), "--output_folder", "mine"]).hparams
    assert given["output_folder"] == "mine"


def test_a_run_and_its_checkpoint_know_the_names(recipe):
    run = load_recipe([recipe(), "--codec", "mel_rvq"])
    assert run.choice == "encoder standins.Thing, codec mel_rvq"
    assert names_of(run.hparams["model"].recipe) == {"encoder": "standins.Thing", "codec": "mel_rvq"}
    tiny = load_recipe([recipe(), "--size", "tiny"])
    assert tiny.choice == "encoder standins.Thing (tiny), codec own (tiny)"
