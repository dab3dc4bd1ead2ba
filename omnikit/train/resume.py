"""Check whether a run may be resumed from the checkpoints in its output folder.

Every checkpoint describes its run. Settings that determine the meaning of weights and data (parts, vocabulary, tasks,
trainable parts) must be unchanged when a run is resumed; rates, lengths, precision and the number of processes may
change.

The checkpoint itself is loaded when `fit` begins, by `OmniBrain.on_fit_start` (`omnikit/train/brain.py`), and chosen by
`WholeCheckpointer` (`omnikit/train/checkpointer.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechbrain.utils.checkpoints import Checkpointer, mark_as_loader, mark_as_saver, register_checkpoint_hooks

from omnikit.errors import there_and_here
from omnikit.hparams.recipe import ORIGINS, Recipe, different_parts, settings_of
from omnikit.torchrun import Share

NAME = "run"
"""Name under which checkpoints store the description of their run."""


@register_checkpoint_hooks
class RunIdentity:
    """Description of a run: its parts, fixed values and settings; saved with each of its checkpoints.

    Args:
        recipe: recipe of the run.
        fixed: JSON values by name that, besides the parts, must not change when the run is resumed.
    """

    def __init__(self, recipe: Recipe, fixed: Mapping[str, Any]):
        options = {**recipe.run_opts, "processes": Share.of_torchrun().processes}
        settings = {**settings_of(recipe.text), **options}
        plain = {"parts": recipe.parts, "fixed": fixed, "settings": settings}
        self.state = json.loads(json.dumps(plain, default=str))

    @mark_as_saver
    def save(self, path: str | Path) -> None:
        """Write the description of the run as JSON."""
        Path(path).write_text(json.dumps(self.state, indent=1), encoding="utf-8")

    @mark_as_loader
    def load(self, path: str | Path, end_of_epoch: bool) -> None:
        """Ignore the run description in a checkpoint; `resumes` has compared it with that of the present run."""


def resumes(checkpointer: Checkpointer, identity: RunIdentity) -> list[str]:
    """Compare a run with the checkpoint that it would resume from, and save its description with new checkpoints.

    Returns:
        One line for the log for each setting that has changed and may change.

    Raises:
        ValueError: parts or fixed values have changed; the message names all of them.
    """
    checkpointer.add_recoverable(NAME, identity, optional_load=True)  # older checkpoints lack it
    found = checkpointer.find_checkpoint()
    if found is None:
        return []
    if NAME not in found.paramfiles:
        return [f"checkpoint {found.path} does not say what it was trained with; it is resumed unchecked"]
    before, now = json.loads(Path(found.paramfiles[NAME]).read_text(encoding="utf-8")), identity.state
    other = {**different_parts(before["parts"], now["parts"], ORIGINS), **_changed(before["fixed"], now["fixed"])}
    if other:
        raise ValueError(
            f"--output_folder {Path(checkpointer.checkpoints_dir).parent}: holds checkpoints of another run "
            f"({there_and_here(other)}); choose another folder, or delete it to begin anew"
        )
    changed = _changed(before["settings"], now["settings"])
    return [f"{name} was {there}, is {here} from here on" for name, (there, here) in changed.items()]


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the names of the settings whose values differ between two mappings, with both values."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {name: (before.get(name), now.get(name)) for name in names}
