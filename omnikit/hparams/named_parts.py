"""Parts chosen by name: `hparams/<kind>/<name>.yaml` describes one part, the file's name is what a user types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnikit.hparams.name_lookup import locate, nearest
from omnikit.hparams.overrides import as_overrides
from omnikit.hparams.yaml_tree import has_tag, read_tree, read_tree_text

KINDS = ("encoder", "adapter", "llm", "codec", "pattern", "strategy")
PACKAGE = Path(__file__).parents[1]


def part_files() -> Path:
    """The folder with one sub-folder per kind: inside the installed package, or `hparams/` of a source checkout."""
    installed = PACKAGE / "part_files"
    return installed if installed.is_dir() else PACKAGE.parent / "hparams"


def choices(part: str) -> list[str]:
    """The names of all parts of the kind `part`.

    Raises:
        ValueError: there is no such kind.
    """
    if part not in KINDS:
        raise ValueError(f"part {part!r}: no such kind of part{nearest(part, KINDS)}")
    return sorted(file.stem for file in (part_files() / part).glob("*.yaml"))


def pick(part: str, name: str, **options: Any) -> Mapping:
    """The YAML node of a part, for `codec: !applyref:omnikit.hparams.pick {part: codec, name: mel_rvq}`.

    Args:
        part: its kind, one of `KINDS`.
        name: a file's name in `hparams/<part>/`, or the path of a part file of one's own, ending in `.yaml`.
        **options: plain values that replace those of the part file.

    Raises:
        ValueError: unknown kind, name or option; the message lists the choices.
    """
    from hyperpyyaml import resolve_references

    file = _part_file(part, name)
    tree = read_tree(file)
    if not has_tag(tree, "!new:", "!name:"):
        raise ValueError(f"{file}: must start with !new:<class> or !name:<class>, then its options (or {{}})")
    locate(tree, f"--{part} {name}")
    overrides = as_overrides(tree, options, file.parent, prefix=f"{part}.")
    with open(file, encoding="utf-8") as stream:
        return read_tree_text(resolve_references(stream, overrides).getvalue(), str(file))


def packaged(file: str) -> str:
    """Path of a file that comes with the package, for part files:
    `tokenizer: !applyref:omnikit.hparams.packaged {file: pretrained/mini/tokenizer.model}`."""
    return str(PACKAGE / file)


def _part_file(part: str, name: str) -> Path:
    known = choices(part)
    if str(name).endswith(".yaml"):
        if not Path(name).is_file():
            raise ValueError(f"--{part} {name}: no such file")
        return Path(name)
    if name not in known:
        raise ValueError(f"--{part} {name}: no such {part}{nearest(name, known)}")
    return part_files() / part / f"{name}.yaml"
