"""Test that malicious checkpoint folders are refused in one line.

Loading them asks no question, runs no code, downloads nothing and reads no file outside the folder.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import omnikit
from omnikit import checkpoint

YAML, WEIGHTS, SENTENCES, JSON, CONFIG = (
    "hparams.yaml", "model.safetensors", "tokenizer.model", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
GIBIBYTE = 2**30
RUNS = "from pathlib import Path\nPath({mark!r}).touch()\nclass Evil:\n    def __init__(self, *a, **k): pass\n"
Spoil = Callable[[Path, Path], object]
"""Function that damages a valid checkpoint folder (first argument), and may put files into a folder beside it (second).
"""
opened: list[str] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES)


@pytest.fixture(scope="module")
def watch():
    """Record the paths of all files that Python opens while the tests of a module run.

    An audit hook cannot be removed, so it is switched off afterwards.
    """
    watching = [True]

    def hook(event: str, arguments: tuple) -> None:
        if watching[0] and event == "open" and isinstance(arguments[0], str | bytes):
            opened.append(os.fsdecode(arguments[0]))

    sys.addaudithook(hook)
    yield
    watching[0] = False


@pytest.fixture(scope="module")
def several(tiny, tmp_path_factory) -> Path:
    """Return a checkpoint folder whose tokenizer has transformers' format of several files; tests must not change it.
    """
    root = tmp_path_factory.mktemp("several")
    vocabulary = {letter: number for number, letter in enumerate("abcdefgh")}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(root / "tokenizer")
    checkpoint.save(tiny({}, {"llm.tokenizer": str(root / "tokenizer")}), root / "stage")
    return root / "stage"


@pytest.fixture
def guarded(monkeypatch, watch):
    """Answer yes to all prompts, replace the model hub, limit memory and time; return the prompts and downloads."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", lambda *names, **_: asked.append(f"hub {names}"))
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * GIBIBYTE, before[1]))

    def late(*_: object) -> None:
        raise AssertionError("hangs")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    opened.clear()
    yield asked
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, before)


def in_yaml(old: str, new: str) -> Spoil:
    def spoil(folder: Path, _: Path) -> None:
        text = (folder / YAML).read_text()
        assert old in text
        (folder / YAML).write_text(text.replace(old, new, 1))

    return spoil


def added(text: str | bytes) -> Spoil:
    """Return a function that appends text to the YAML file of a checkpoint folder."""

    def spoil(folder: Path, _: Path) -> None:
        (folder / YAML).write_bytes((folder / YAML).read_bytes() + (text if isinstance(text, bytes) else text.encode()))

    return spoil


def moved(name: str) -> Spoil:
    """Return a function that moves a file out of a checkpoint folder and puts a link to it in its place."""

    def spoil(folder: Path, outside: Path) -> None:
        shutil.move(folder / name, outside / name)
        (folder / name).symlink_to(outside / name)

    return spoil


def of_kind(name: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(folder: Path, _: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


def bound(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket is at most about a hundred characters long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


def looped(path: Path) -> None:
    path.symlink_to(path.name)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, GIBIBYTE)


def written(name: str, content: str | bytes) -> Spoil:
    def spoil(folder: Path, _: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def with_tensors(change: Callable[[dict], object]) -> Spoil:
    def spoil(folder: Path, _: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return spoil


HEAD = "new_text_embeddings.head.weight"


def put(value: float) -> Spoil:
    return with_tensors(lambda tensors: tensors[HEAD].view(-1)[5:6].fill_(value))


def cast(dtype: torch.dtype) -> Spoil:
    return with_tensors(lambda tensors: tensors.update({HEAD: tensors[HEAD].to(dtype)}))


def truncated(folder: Path, _: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)


def named_outside(key: str, place: Callable[[Path], object]) -> Spoil:
    """Return a function that makes a YAML option of a checkpoint name a valid file outside the checkpoint's folder."""

    def spoil(folder: Path, outside: Path) -> None:
        shutil.copytree(folder, outside / "owner")
        text = (folder / YAML).read_text()
        old = next(line for line in text.splitlines() if line.strip().startswith(f"{key}:"))
        indent = old[: len(old) - len(old.lstrip())]
        (folder / YAML).write_text(text.replace(old, f"{indent}{key}: {place(outside)}", 1))

    return spoil


def aliased(folder: Path, _: Path) -> None:
    """Make a checkpoint's YAML define a value at a harmless key, and use it by an alias as the weights to be read."""
    text = (folder / YAML).read_text()
    assert "  weights:" in text
    (folder / YAML).write_text("note: &note tiny\n" + text.replace("  weights:", "  weights: *note", 1))


NESTED = """model: !new:omnikit.model.OmniLM
  llm: !new:omnikit.llms.transformers_lm.TransformersLM
    config: {{model_type: qwen2, vocab_size: 24, hidden_size: 16}}
    tokenizer: {name}
"""


def nested(name: str) -> Spoil:
    """Return a function that adds a backbone to a checkpoint's YAML as a nested entry of the model.

    A saved checkpoint has no backbone in that place.
    """

    def spoil(folder: Path, _: Path) -> None:
        text = (folder / YAML).read_text()
        (folder / YAML).write_text(text.replace("model: !new:omnikit.model.OmniLM\n", NESTED.format(name=name), 1))

    return spoil


def tokenizer_code(folder: Path, outside: Path) -> None:
    """Add a tokenizer class to a checkpoint folder, whose code transformers would ask the user's permission to run."""
    (folder / JSON).unlink()
    (folder / "evil.py").write_text(RUNS.format(mark=str(outside / "ran")))
    own = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (folder / CONFIG).write_text(json.dumps(own))


def model_code(folder: Path, outside: Path) -> None:
    """Add a tokenizer class to a checkpoint folder, named by the model configuration `config.json`."""
    tokenizer_code(folder, outside)
    (folder / CONFIG).write_text(json.dumps({"tokenizer_class": "Evil"}))
    own = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoTokenizer": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(own))


def other_vocabulary(*names: str, file: str = "") -> Spoil:
    """Return a function that makes a checkpoint's tokenizer configuration name files outside the checkpoint's folder.
    """

    def spoil(folder: Path, outside: Path) -> None:
        shutil.copy(folder / JSON, outside / "vocab.json")
        (folder / JSON).unlink()
        place = file or str(outside / "vocab.json")
        (folder / CONFIG).write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **dict.fromkeys(names, place)}))

    return spoil


def tokenizer_json(change: Callable[[dict], object]) -> Spoil:
    def spoil(folder: Path, _: Path) -> None:
        tree = json.loads((folder / JSON).read_text())
        change(tree)
        (folder / JSON).write_text(json.dumps(tree))

    return spoil


def public(kind: str, name: str) -> Spoil:
    return added(f'public_weights: {{{kind}: {{name: "{name}", fingerprint: "{"0" * 64}"}}}}')


def wide_public(folder: Path, _: Path) -> None:
    """Name public weights of the encoder, and give it a size that would fill the memory many times."""
    public("encoder", "base")(folder, _)
    in_yaml("n_ctx: 200", "n_ctx: 2000000000")(folder, _)
    encoder = [name for name in load_file(folder / WEIGHTS) if name.startswith("encoder.")]
    with_tensors(lambda tensors: [tensors.pop(name) for name in encoder])(folder, _)


SNAC = """codec: &id004 !new:omnikit.codecs.snac.SnacCodec
  sampling_rate: 24000
  vq_strides: [1073741824, 1]
  encoder_dim: 4
  decoder_dim: 64
unused:"""
LAUGHS = "laughs:\n  - &l0 [1, 1, 1, 1, 1, 1, 1, 1]\n" + "\n".join(
    f"  - &l{n} [{', '.join([f'*l{n - 1}'] * 8)}]" for n in range(1, 9)
)
OTHER_TOKENIZER = "no tokenizer that transformers can read|ids|does not fit"
NO_FILE, NO_TOKENIZER = "is not the name of a file", "holds no tokenizer that transformers can read"
PANIC = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}  # where the tokenizers library panics
CASES: dict[str, tuple[Spoil, str]] = {
    # the YAML file
    "yaml fifo": (of_kind(YAML, os.mkfifo), "hparams.yaml: is a named pipe"),
    "yaml folder": (of_kind(YAML, os.mkdir), "hparams.yaml: is a folder"),
    "yaml socket": (of_kind(YAML, bound), "hparams.yaml: is a socket"),
    "yaml loop": (of_kind(YAML, looped), "hparams.yaml"),
    "yaml elsewhere": (moved(YAML), "hparams.yaml is a link to .*outside the folder"),
    "yaml device": (of_kind(YAML, lambda path: path.symlink_to("/dev/zero")), "is a link to /dev/zero, outside"),
    "deep": (added("deep: " + "[" * 300), r"nested more than \d+ deep"),
    "deep by lines": (added("\n".join("  " * n + "a:" for n in range(150))), r"nested more than \d+ deep"),
    "laughs": (added(LAUGHS), "once its aliases are written out"),
    "itself": (added("round: &round [*round]"), "contains itself"),
    "many": (added("many: [" + "1, " * 12000 + "]"), r"more than \d+ entries"),
    "long": (added("#" * 10**6), "has 10.* bytes, more than"),
    "twice": (added("codec: 1\ncodec: 2"), "duplicate key"),
    "latin": (added(b"# \xff"), "not UTF-8"),
    "nul": (added(b"a: \0"), "special characters"),
    "digits": (added("a: " + "9" * 5000), "is no whole number"),
    "no number": (in_yaml("heads: 2", "heads: !!float two"), "encoder.heads two: is no number"),
    "apply": (added("a: !apply:os.system [touch ran]"), "!apply:os.system is refused"),
    "names": (in_yaml("  encoder: mini\n", "  encoder: 5\n"), "part_names must be a mapping"),
    "tuple": (added("a: (" + "[" * 300 + ")"), "nested more than"),
    # places that it names
    "tokenizer elsewhere": (named_outside("tokenizer", lambda at: at / "owner" / SENTENCES), NO_FILE),
    "tokenizer above": (named_outside("tokenizer", lambda at: ".."), NO_FILE),
    "tokenizer of a hub": (named_outside("tokenizer", lambda at: "owner/name"), NO_FILE),
    "nested hub": (nested("owner/name"), "model.llm.tokenizer 'owner/name'"),
    "nested name": (nested("tokenizer.model"), "model.llm.tokenizer 'tokenizer.model'"),
    "weights elsewhere": (named_outside("weights", lambda at: at / "owner"), "encoder.weights .*reads its own files"),
    "weights by name": (named_outside("weights", lambda at: "tiny"), "encoder.weights 'tiny'.*reads its own files"),
    "weights by alias": (aliased, "encoder.weights 'tiny'.*reads its own files"),
    "class that reads": (added("a: !new:omnikit.llms.tokenizers.SentencePieceTokenizer {path: near}"), "a.path 'near'"),
    "attention of a hub": (named_outside("attention", lambda at: "owner/kernel"), "llm.attention 'owner/kernel'"),
    "kernel of a hub": (in_yaml("model_type: qwen2", "model_type: qwen2\n    attn_implementation: a/b"), "'a/b'"),
    "public weights": (added("public_weights: base"), "public_weights must be a mapping of encoder, llm, codec"),
    "public weights of no part": (public("adapter", "base"), "public_weights must be a mapping"),
    "public weights by path": (public("encoder", "../outside/a"), "public_weights must be a mapping"),
    "public weights by file": (public("encoder", "weights.pt"), "public_weights must be a mapping"),
    "public weights here": (public("encoder", "outside/a"), "could be meant or outside in this folder|has the unknown"),
    "public weights with tensors": (public("encoder", "base"), "has the unknown encoder"),
    # its sizes
    "wide": (in_yaml("hidden_size: 16", "hidden_size: 1000000000"), "does not fit|cannot be built|much larger"),
    "layers": (in_yaml("num_hidden_layers: 1", "num_hidden_layers: 10000000000"), "must be at most"),
    "modules": (in_yaml("num_hidden_layers: 1", "num_hidden_layers: 4000"), r"more than \d+ modules"),
    "blocks": (in_yaml("model: !new:omnikit.model.OmniLM", "model: !new:omnikit.model.OmniLM\n  tts_blocks: 9999999"),
               "tts_blocks 9999999: must be at most"),
    "codebooks": (in_yaml("num_codebooks: 7", "num_codebooks: 99999999999"), "must be at most"),
    "codes": (in_yaml("codebook_size: 256", "codebook_size: 999999999"), "much larger than its weights"),
    "context": (in_yaml("n_ctx: 200", "n_ctx: 999999999"), "much larger than its weights"),
    "context of public weights": (wide_public, "needs .* GiB of memory"),
    "window": (in_yaml("n_fft: 640", "n_fft: 1073741824"), "--codec.n_fft 1073741824: must be"),
    "bands": (in_yaml("n_mels: 80\n  n_fft", "n_mels: 1073741824\n  n_fft"), "--codec.n_mels 1073741824: must be"),
    "strides": (in_yaml("codec: &id004", SNAC), "codec.vq_strides 1073741824: must be at most"),
    "no heads": (in_yaml("num_attention_heads: 2", "num_attention_heads: 0"), "hparams.yaml: .*"),
    "negative": (in_yaml("width: 16", "width: -16"), "cannot be built from the options in its YAML"),
    # the weights
    "weights fifo": (of_kind(WEIGHTS, os.mkfifo), "model.safetensors: is a named pipe"),
    "weights folder": (of_kind(WEIGHTS, os.mkdir), "model.safetensors: is a folder"),
    "weights moved": (moved(WEIGHTS), "model.safetensors is a link to .*outside the folder"),
    "truncated": (truncated, "not a safetensors file"),
    "header length": (written(WEIGHTS, struct.pack("<Q", 2**40) + b"{}"), "its header would have"),
    "header": (written(WEIGHTS, struct.pack("<Q", 8) + b"[[[[[[[["), "not a safetensors file"),
    "empty": (written(WEIGHTS, b""), "not a safetensors file"),
    "nan": (put(float("nan")), f"not finite .* in {HEAD}"),
    "infinite": (put(float("-inf")), f"not finite .* in {HEAD}"),
    "whole": (cast(torch.int32), f"{HEAD} has whole values where floating-point ones are needed"),
    "bool": (cast(torch.bool), f"{HEAD} has true or false values where floating-point"),
    "missing": (with_tensors(lambda tensors: tensors.pop(HEAD)), f"lacks {HEAD}"),
    "more": (with_tensors(lambda tensors: tensors.update({"\x1b[2J": torch.zeros(1)})), "has the unknown"),
    "shape": (with_tensors(lambda tensors: tensors.update({HEAD: torch.zeros(3)})), rf"{HEAD} is \[3\] where"),
    # the tokenizer
    "sentences moved": (moved(SENTENCES), "tokenizer.model is a link to .*outside the folder"),
    "sentences fifo": (of_kind(SENTENCES, os.mkfifo), "tokenizer.model: is a named pipe"),
    "sentences garbage": (written(SENTENCES, b"\xff" * 999), "not a sentencepiece model"),
    "sentences empty": (written(SENTENCES, b""), "not a sentencepiece model"),
    "sentences large": (of_kind(SENTENCES, sparse), "bytes, more than"),
    "several: code": (tokenizer_code, NO_TOKENIZER),
    "several: model code": (model_code, NO_TOKENIZER),
    "several: vocabulary elsewhere": (other_vocabulary("vocab_file", "merges_file"), OTHER_TOKENIZER),
    "several: vocabulary as value": (other_vocabulary("vocab", "merges"), OTHER_TOKENIZER),
    "several: vocabulary from stdin": (other_vocabulary("vocab", "merges", file="/dev/stdin"), OTHER_TOKENIZER),
    "several: moved": (moved(JSON), "tokenizer.json is a link to .*outside the folder"),
    "several: config moved": (moved(CONFIG), "tokenizer_config.json is a link to .*outside the folder"),
    "several: fifo": (of_kind(JSON, os.mkfifo), "tokenizer.json: is a named pipe"),
    "several: malformed": (written(JSON, "{" * 5000), NO_TOKENIZER),
    "several: large": (of_kind(JSON, sparse), "bytes, more than"),
    "several: panic": (tokenizer_json(lambda tree: tree.update(normalizer=PANIC)), NO_TOKENIZER),
    "several: ids": (tokenizer_json(lambda tree: tree["model"]["vocab"].update(a=4294967295)),
                     "4294967296 ids|does not fit|larger than"),
}  # fmt: skip
GOOD_TO_DESCRIBE = ("nan", "infinite", "context of public weights")
"""Names of the malicious checkpoints that `omnikit info` accepts, since it reads no values of weights."""


@pytest.fixture
def folder(case, saved, several, tmp_path) -> Path:
    (tmp_path / "outside").mkdir()
    folder = shutil.copytree(several if case.startswith("several") else saved, tmp_path / "stage")
    CASES[case][0](folder, tmp_path / "outside")
    return folder


def check_nothing_happened(asked: list[str], tmp_path: Path) -> None:
    assert not asked
    assert not list(tmp_path.rglob("ran")) and not Path("ran").exists()
    outside = str(tmp_path / "outside")
    assert not [path for path in opened if path.startswith(outside) or os.path.realpath(path).startswith(outside)]


def test_a_hostile_folder_is_refused_in_one_line(case, folder, guarded, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=CASES[case][1]) as error:
        omnikit.load(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    status, out, err = run("info", "--checkpoint", folder)
    if case not in GOOD_TO_DESCRIBE:
        assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
        assert err.strip().isprintable()
    check_nothing_happened(guarded, tmp_path)


def test_good_folders_load_under_the_same_guard(saved, several, guarded, run, tmp_path):
    for folder in (saved, several):
        omnikit.load(folder)
        assert run("info", "--checkpoint", folder)[0] == 0
    check_nothing_happened(guarded, tmp_path)
