"""Whether a run may go on from the checkpoints in its output folder.

Every checkpoint says what was trained. What decides about the meaning of weights and data (parts, vocabulary, tasks,
what trains) must be the same when it is resumed; rates, lengths, precision and the number of processes may change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechbrain.utils.checkpoints import Checkpointer, mark_as_loader, mark_as_saver, register_checkpoint_hooks

from omnikit.hparams.recipe import ORIGINS, Recipe, different_parts, settings_of
from omnikit.interfaces import Tokenizer
from omnikit.llms.tokenizers import HubTokenizer
from omnikit.torchrun import Share

NAME = "run"
"""What checkpoints call it."""
_SAMPLED_IDS = 4096


@register_checkpoint_hooks
class RunIdentity:
    """Describes what a run trains and with which settings; saved with each of its checkpoints.

    Args:
        recipe: what the command line describes.
        fixed: names and values that may not change, besides the parts; JSON must be able to hold them.
    """

    def __init__(self, recipe: Recipe, fixed: Mapping[str, Any]):
        options = {**recipe.run_opts, "processes": Share.of_torchrun().processes}
        settings = {**settings_of(recipe.text), **options}
        plain = {"parts": recipe.parts, "fixed": fixed, "settings": settings}
        self.state = json.loads(json.dumps(plain, default=str))

    @mark_as_saver
    def save(self, path: str | Path) -> None:
        """Write the identity as JSON."""
        Path(path).write_text(json.dumps(self.state, indent=1), encoding="utf-8")

    @mark_as_loader
    def load(self, path: str | Path, end_of_epoch: bool) -> None:
        """Keep this run's own identity: `resumes` has compared it with the checkpoint's."""


def resumes(checkpointer: Checkpointer, identity: RunIdentity) -> list[str]:
    """Compare a run with the checkpoint that it would go on from, and let its own checkpoints carry its identity.

    Returns:
        What has changed and may change, in words for the log.

    Raises:
        ValueError: something else has changed; the message names all of it.
    """
    checkpointer.add_recoverable(NAME, identity, optional_load=True)  # checkpoints from before do not have it
    found = checkpointer.find_checkpoint()
    if found is None:
        return []
    if NAME not in found.paramfiles:
        return [f"checkpoint {found.path} does not say what it was trained with; it is resumed unchecked"]
    before, now = json.loads(Path(found.paramfiles[NAME]).read_text(encoding="utf-8")), identity.state
    other = {**different_parts(before["parts"], now["parts"], ORIGINS), **_changed(before["fixed"], now["fixed"])}
    if other:
        words = "; ".join(f"{name} is {there} there and {here} here" for name, (there, here) in other.items())
        raise ValueError(
            f"--output_folder {Path(checkpointer.checkpoints_dir).parent}: holds checkpoints of another run ({words}); "
            "choose another folder, or delete it to begin anew"
        )
    changed = _changed(before["settings"], now["settings"])
    return [f"{name} was {there}, is {here} from here on" for name, (there, here) in changed.items()]


def vocabulary_of(tokenizer: Tokenizer) -> str:
    """Return a short name for what a tokenizer's ids mean: a digest of the texts of ids from all over its range."""
    tokenizer = tokenizer.loaded if isinstance(tokenizer, HubTokenizer) else tokenizer  # ids by what is in the files
    digest = hashlib.sha256(str(tokenizer.vocab_size).encode())
    for i in range(0, tokenizer.vocab_size, max(1, tokenizer.vocab_size // _SAMPLED_IDS)):
        digest.update(tokenizer.decode([i]).encode(errors="surrogatepass") + b"\0")
    return f"{tokenizer.vocab_size} ids, {digest.hexdigest()[:8]}"


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the names whose values differ, with both values."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {name: (before.get(name), now.get(name)) for name in names}
