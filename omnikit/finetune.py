"""Writes the recipe with which a checkpoint is fine-tuned on one's own data; implements `omnikit recipe`.

The recipe includes `hparams/finetune.yaml` and names the checkpoint and its parts. The script beside it is that of
`recipes/VoiceAssistant/QA`.
"""

from __future__ import annotations

from pathlib import Path

from omnikit.checkpoint import existing, read_parts
from omnikit.files import read_text, write_text
from omnikit.hparams import KINDS
from omnikit.hparams.named_parts import PACKAGE
from omnikit.hparams.part_flags import NAMES
from omnikit.hparams.yaml_tree import dotted_name, read_tree_text, write_tree
from omnikit.option_ranges import FROM_ZERO

SCRIPT, RECIPE = "train.py", "train.yaml"
"""Names of the two files that are written."""
LORA_RANK = 8
"""Default rank of the low-rank updates."""
_HEAD = """\
# Fine-tunes a checkpoint on the data in DIR: python train.py train.yaml --data_folder DIR
# The options of finetune.yaml, which comes with the package, can be replaced here or on the command line.
<<: !include:finetune.yaml {}
"""
_PARTS = "\n# parts: those of the checkpoint\n"


def write_recipe(folder: str | Path, checkpoint: str | Path | None = None, lora_rank: int = LORA_RANK) -> list[Path]:
    """Write the training script and the recipe that fine-tune a checkpoint, and return their paths.

    Args:
        folder: folder of the two files, which is made if it is missing.
        checkpoint: checkpoint folder, name of a shipped system or hub id; None = the mini system of the package.
        lora_rank: rank of the low-rank updates of the backbone (LoRA); 0 = the whole backbone trains.

    Raises:
        ValueError: the checkpoint cannot be read, the rank is not a whole number from 0, or a file exists already.
    """
    FROM_ZERO.check("lora_rank", lora_rank)
    folder, origin = Path(folder), existing(checkpoint)
    files = {RECIPE: recipe_of(origin, lora_rank), SCRIPT: read_text(training_script())}
    for name in files:
        if (folder / name).exists():
            raise ValueError(f"{folder / name}: exists already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(folder / name, text)
    return [folder / name for name in files]


def recipe_of(checkpoint: Path, lora_rank: int) -> str:
    """Return the YAML text of the recipe that fine-tunes a checkpoint; see `write_recipe`."""
    tree = read_tree_text(read_parts(checkpoint), str(checkpoint))
    parts = {kind: tree[kind] for kind in KINDS if kind in tree}
    if lora_rank and dotted_name(parts["llm"]).startswith("omnikit."):
        parts["llm"]["lora"] = {"rank": lora_rank, "alpha": 2 * lora_rank}
    model = {f"model.{key}": value for key, value in tree["model"].items() if key not in KINDS}
    names = {NAMES: tree[NAMES]} if NAMES in tree else {}
    sections = [{"initial_weights": str(checkpoint.absolute())}, {**parts, **model, **names}]
    return _HEAD + _PARTS.join(map(write_tree, sections))


def training_script() -> Path:
    """Return the path of the training script, in the installed package or in a source checkout."""
    installed = PACKAGE / "training_script" / SCRIPT
    return installed if installed.is_file() else PACKAGE.parent / "recipes" / "VoiceAssistant" / "QA" / SCRIPT
