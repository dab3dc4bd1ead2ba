"""Parts chosen by name: `hparams/<kind>/<name>.yaml` describes one part, and users type the name of the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnikit.hparams.name_lookup import locate, nearest
from omnikit.hparams.overrides import as_overrides
from omnikit.hparams.yaml_tree import has_tag, read_tree, read_tree_text

KINDS = ("encoder", "adapter", "llm", "codec", "pattern", "strategy")
AUGMENT = "augment"
"""Kind of the files that describe an augmentation of training data, which is chosen by name like a part."""
PACKAGE = Path(__file__).parents[1]


def part_files() -> Path:
    """Return the folder with the part files, one sub-folder for each kind of part.

    It is inside the installed package, or `hparams/` of a source checkout.
    """
    installed = PACKAGE / "part_files"
    return installed if installed.is_dir() else PACKAGE.parent / "hparams"


def choices(part: str) -> list[str]:
    """Return the names of all parts of one kind, such as all codecs, sorted; those of augmentations, too.

    Raises:
        ValueError: there is no such kind.
    """
    if part not in (*KINDS, AUGMENT):
        raise ValueError(f"part {part!r}: no such kind of part{nearest(part, KINDS)}")
    return sorted(file.stem for file in (part_files() / part).glob("*.yaml"))


def pick(part: str, name: str, **options: Any) -> Mapping:
    """Return the YAML node of a part file, for `codec: !applyref:omnikit.hparams.pick {part: codec, name: mel_rvq}`.

    Args:
        part: kind of the part, one of `KINDS`, or `AUGMENT`.
        name: name of a file in `hparams/<part>/`, or the path of another part file, ending in `.yaml`.
        **options: plain values that override those of the part file.

    Raises:
        ValueError: kind, name or option is unknown; the message lists the choices.
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
    """Return the path of a file that comes with the package, for use in part files.

    Example: `tokenizer: !applyref:omnikit.hparams.packaged {file: pretrained/mini/tokenizer.model}`.
    """
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
