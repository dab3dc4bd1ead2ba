"""Test that a file imports only from groups above its own, and that inference needs no training packages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "omnikit"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def groups(page: str) -> tuple[tuple[str, ...], ...]:
    """Return the names in each line of the table of import groups; text after a colon or a semicolon is left out."""
    lines = re.findall(r"^\| (\d+) \| ([^|]*?) \|$", page, re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(len(lines)))
    return tuple(tuple(re.split(r"[:;]", names)[0].split(", ")) for _, names in lines)


GROUPS = groups(CONTRIBUTING)
GROUP = {name: number for number, names in enumerate(GROUPS) for name in names}
TRAINING = {"data", "prepare", "offline", "train", "evaluate"}
PARTS = {"patterns", "adapters", "encoders", "llms", "codecs"}
ALLOWED = {
    # `omnikit.load` and the other public names are imported when they are first used
    ("__init__", "api"),
}


def imports(source: str, package: str) -> set[str]:
    """Return the dotted names that a file imports at any level, except those under `TYPE_CHECKING`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = [ast.Pass()]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """Return the module or folder of omnikit that a file belongs to: `codecs` for omnikit/codecs/snac.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    return imports(path.read_text(encoding="utf-8"), ".".join(path.relative_to(ROOT).parent.parts))


def test_every_file_has_a_group():
    units = {unit(path) for path in files()} - {"__init__"}
    assert units == set(GROUP), f"in no group, or in one without a file: {sorted(units ^ set(GROUP))}"
    assert len(GROUP) == sum(map(len, GROUPS)), "in two groups"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_arrow_points_up(path):
    own = unit(path)
    wanted = {name.split(".")[1] for name in imported(path) if name.startswith("omnikit.")}
    upward = {
        name for name in wanted - {own}
        if name in GROUP and GROUP[name] > GROUP.get(own, -1) and (own, name) not in ALLOWED
    }  # fmt: skip
    assert not upward, f"omnikit.{own} imports {sorted(upward)} from a later group"


def test_the_model_knows_no_concrete_part():
    for path in files():
        if GROUP.get(unit(path)) == GROUP["model"]:
            wanted = {name.split(".")[1] for name in imported(path) if name.startswith("omnikit.")}
            assert not wanted & PARTS, path


def test_speechbrain_and_torchaudio_are_for_training():
    for path in files():
        lazily_in_hparams = unit(path) == "hparams"  # the names of run options, when a training script asks for them
        if unit(path) not in TRAINING and not lazily_in_hparams:
            heavy = {name for name in imported(path) if name.split(".")[0] in ("speechbrain", "torchaudio")}
            assert not heavy, f"{path} imports {heavy}"


def test_the_check_sees_what_it_should():
    source = "from __future__ import annotations\nif TYPE_CHECKING:\n    from omnikit.cli import x\n"
    assert imports(source, "omnikit") == {"__future__.annotations"}
    inside = "def f():\n    from omnikit.train import brain\n"
    assert imports(inside, "omnikit.codecs") == {"omnikit.train.brain"}
    assert imports("from ..train import brain", "omnikit.codecs") == {"omnikit.train.brain"}
    assert imports("from . import snac", "omnikit.codecs") == {"omnikit.codecs.snac"}
    assert imports("import omnikit.cli as c", "omnikit") == {"omnikit.cli"}


HEAVY = {
    "transformers", "huggingface_hub", "tokenizers", "peft", "whisper", "tiktoken", "numba", "scipy", "librosa",
    "regex", "snac", "sympy", "triton", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torchaudio",
    "openvino", "speechbrain", "hyperpyyaml", "datasets", "pyarrow", "pandas", "matplotlib", "sklearn", "typer", "rich",
}  # fmt: skip
"""Modules that an answer of the shipped system must not import, since each of them takes time to start."""
LIGHT = {"numpy", "ruamel", "safetensors", "sentencepiece", "soundfile", "soxr", "cython_runtime"}
"""Top-level packages that an answer of the shipped system may import, besides torch and those that torch imports."""
PARTS_OF_SHIPPED = "omnikit.adapters, omnikit.codecs.mel_rvq, omnikit.encoders.whisper, omnikit.patterns"
QUESTION = "egs/mini/questions/sum.wav"


def run(code: str) -> str:
    """Run Python code in a new process, and return its output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import omnikit, omnikit.cli", {"speechbrain", "torchaudio", "torch", "numpy", "ruamel"}),
        (f"import omnikit.api, omnikit.checkpoint, omnikit.engines, {PARTS_OF_SHIPPED}", HEAVY),
        ("import omnikit.hparams, omnikit.describe, omnikit.convert.mini_omni", HEAVY),
        ("import omnikit.codecs.snac", HEAVY - {"snac"}),
        ("from omnikit.cli import _job; assert _job('A1A2', 'a.wav', None, 16, None, {}) is None", HEAVY - {"typer"}),
        (
            "import omnikit.prepare.corpus, omnikit.prepare.corpus_readers",
            {"speechbrain", "torchaudio", "torch", "datasets"},
        ),
    ],
)
def test_inference_and_preparing_start_light(code, forbidden):
    found = run(f"{code}\nimport sys; print(*({forbidden!r} & set(sys.modules)))").split()
    assert not found, f"`{code}` imports {', '.join(sorted(found))}"


def test_an_answer_of_the_shipped_system_imports_what_it_needs():
    """A process that loads the shipped system and answers a written and a spoken question imports no heavy module."""
    new = set(
        run(
            "import sys, torch; before = set(sys.modules)\n"
            f"import omnikit; omni = omnikit.load(); omni.chat('what is two plus two'); omni.ask({QUESTION!r})\n"
            "print(*(set(sys.modules) - before))"
        ).split()
    )
    assert not HEAVY & new, f"an answer imports {', '.join(sorted(HEAVY & new))}"
    packages = {name.partition(".")[0] for name in new} - sys.stdlib_module_names - {"omnikit", "torch"}
    unknown = {name for name in packages if not name.startswith("_")} - LIGHT  # compiled halves of packages have a _
    assert not unknown, f"an answer imports {', '.join(sorted(unknown))}: if it needs them, name them in LIGHT"


def test_a_system_is_compared_on_the_meta_device_without_the_compiler():
    """Building a system on torch's meta device does not import torch's compiler, as computing on that device would."""
    code = (
        "import sys, torch\n"
        "from omnikit.hparams import build_part\n"
        "from omnikit.skip_init import SkipInit\n"
        "with SkipInit(), torch.device('meta'):\n"
        "    parts = build_part('encoder', 'mini'), build_part('codec', 'mel_rvq')\n"
        "assert all(tensor.is_meta for part in parts for tensor in part.state_dict().values())\n"
        "print(*({'torch._dynamo', 'sympy'} & set(sys.modules)))"
    )
    assert not run(code).split()


def test_a_system_is_built_where_training_packages_are_not_installed():
    """A system is built where torchaudio and speechbrain are not installed.

    Where torchaudio is installed, transformers imports it.
    """
    code = (
        "import sys; sys.modules['speechbrain'] = sys.modules['torchaudio'] = None\n"
        "import omnikit; print(omnikit.build(**{'encoder.width': 16}).layout.num_streams)"
    )
    assert run(code).strip() == "8"
