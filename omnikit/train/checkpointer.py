"""SpeechBrain's Checkpointer made safe against kills, full disks and damaged files."""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from speechbrain.utils.checkpoints import CKPT_PREFIX, METAFNAME, PARAMFILE_EXT, Checkpoint, Checkpointer, ckpt_recency
from speechbrain.utils.distributed import ddp_barrier, if_main_process, main_process_only

from omnikit.errors import TORCH_CANNOT_WRITE, one_line, writing
from omnikit.train.checksums import SUMS, find_damage, find_unreadable, flush_folder, write_sums
from omnikit.weights import refuse_not_finite

logger = logging.getLogger(__name__)

KEPT = 2
"""Number of newest checkpoints that are never deleted, so that another is left if one is damaged."""
UNFINISHED = "unfinished-"
"""Prefix of the name of a checkpoint folder while it is being written or deleted."""


class WholeCheckpointer(Checkpointer):
    """A Checkpointer that loads the newest checkpoint whose files match their checksums.

    A checkpoint is written to a folder `unfinished-CKPT...`. When all of it is on the disk, with the checksum of each
    file in `SUMS.json`, the folder is renamed to `CKPT...`. A folder of that name was therefore complete once, and a
    file that does not match its checksum is damaged. Checkpoints of versions without checksums are loaded, too.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._damaged: dict[Path, str] = {}  # checkpoint -> damage that the last search found
        self._whole: set[Path] = set()  # checkpoints that this process has verified

    def save_checkpoint(
        self,
        meta: Mapping[str, Any] = {},
        end_of_epoch: bool = True,
        name: str | None = None,
        verbosity: int = logging.INFO,
    ) -> Checkpoint | None:
        """Save a checkpoint; unfinished checkpoints are removed before, damaged ones afterwards.

        Raises:
            ValueError: weights are not finite, or the disk is full; existing checkpoints stay.
        """
        for key, module in self.recoverables.items():
            if isinstance(module, torch.nn.Module):  # the weights are equal in all processes
                refuse_not_finite(module.state_dict(), f"{self.checkpoints_dir}: no checkpoint is saved: {key}")
        with self._writing():
            if if_main_process():
                self._sweep()
            saved = super().save_checkpoint({**meta, "sums": SUMS}, end_of_epoch, name, logging.DEBUG)
            ddp_barrier()  # some objects are saved by all processes together
            if saved is not None:  # None on all but the main process
                saved = self._finish(saved, verbosity)
        ddp_barrier()
        return saved

    def find_checkpoint(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        """Return the first undamaged checkpoint in SpeechBrain's order, or None if there are no checkpoints.

        The main process verifies the checksums, logs a warning for each damaged checkpoint and broadcasts the result.

        Raises:
            ValueError: all checkpoints are damaged.
        """
        found, problem = self._find_whole(*args, **kwargs)
        if problem is not None:
            raise ValueError(problem)
        return found

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint; only tensors and plain values are unpickled.

        Raises:
            ValueError: the checkpoint holds other Python objects.
        """
        try:
            super().load_checkpoint(checkpoint)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{checkpoint.path}: not a checkpoint of a training ({one_line(error)})") from None

    def delete_checkpoints(
        self,
        *,
        num_to_keep: int = 1,
        min_keys: Sequence[str] | None = None,
        max_keys: Sequence[str] | None = None,
        importance_keys: Sequence[Callable[[Checkpoint], Any]] = (ckpt_recency,),
        ckpt_predicate: Callable[[Checkpoint], bool] | None = None,
        verbosity: int = logging.INFO,
    ) -> None:
        """Delete checkpoints as SpeechBrain does, except for the newest `KEPT`.

        A folder is renamed before it is deleted, so that a kill leaves no partial checkpoint under a valid name.
        """
        choices: list[dict[str, Any]] = [{"min_key": key} for key in min_keys or ()]
        choices += [{"max_key": key} for key in max_keys or ()]
        choices += [{"importance_key": key} for key in dict.fromkeys(importance_keys)]
        ddp_barrier()
        if if_main_process():
            kept = self._paths(max_num_checkpoints=KEPT)
            listed = []
            for choice in choices:
                found = self._paths(**choice, ckpt_predicate=ckpt_predicate)
                listed += found
                kept += found[:num_to_keep]
            for path in {*listed} - {*kept}:
                self._remove(path)
                logger.log(verbosity, f"Deleted checkpoint in {path}")
        ddp_barrier()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a write error such as a full disk into a one-line error, and delete the unfinished checkpoint."""
        try:
            with writing(self.checkpoints_dir):
                try:
                    yield
                except RuntimeError as error:
                    if not any(word in str(error) for word in TORCH_CANNOT_WRITE):
                        raise
                    free = shutil.disk_usage(self.checkpoints_dir).free / 1e6
                    raise OSError(f"{one_line(error)}; {free:.1f} MB are free") from None
        except ValueError:
            if if_main_process():
                self._sweep()
            raise

    def _finish(self, saved: Checkpoint, verbosity: int) -> Checkpoint:
        """Write the checksums of a saved checkpoint, rename it to its final name and return it."""
        write_sums(saved.path)
        path = saved.path.with_name(saved.path.name.removeprefix(UNFINISHED))
        saved.path.rename(path)
        flush_folder(self.checkpoints_dir)
        kind = "end-of-epoch" if saved.meta["end-of-epoch"] else "intra-epoch"
        logger.log(verbosity, f"Saved an {kind} checkpoint in {path}")
        for damaged in self._look():
            self._remove(damaged)
            logger.info(f"Deleted the damaged checkpoint in {damaged}")
        self._damaged.clear()
        return Checkpoint(path, saved.meta, {name: path / file.name for name, file in saved.paramfiles.items()})

    @main_process_only
    def _find_whole(self, *args: Any, **kwargs: Any) -> tuple[Checkpoint | None, str | None]:
        """Return the checkpoint to load and None, or None and an error message if all checkpoints are damaged."""
        known, damaged, chosen = set(self._damaged), self._look(), None
        for checkpoint in self.find_checkpoints(*args, **kwargs):
            damage = None if checkpoint.path in self._whole else self._verify(checkpoint)
            if damage is None:
                if _has_sums(checkpoint.path, checkpoint.meta):  # else not all expected files may be known yet
                    self._whole.add(checkpoint.path)
                chosen = checkpoint
                break
            damaged[checkpoint.path] = damage
        self._damaged = damaged
        for path in sorted(damaged.keys() - known):
            logger.warning(f"{path}: damaged, so it is not used: {damaged[path]}")
        if chosen is None and damaged:
            example = min(damaged)
            return None, (
                f"{self.checkpoints_dir}: no whole checkpoint is left ({example.name}: {damaged[example]}); put a copy "
                "of one there to go on, or delete the folder to begin anew"
            )
        if chosen is None and any(self.checkpoints_dir.glob(f"{UNFINISHED}*")):
            logger.warning(f"{self.checkpoints_dir}: the first checkpoint was never finished, so training begins anew")
        return chosen, None

    def _paths(self, **choice: Any) -> list[Path]:
        # paths, because two reads of one checkpoint compare unequal if its metadata holds a NaN
        return [checkpoint.path for checkpoint in self.find_checkpoints(**choice)]

    def _look(self) -> dict[Path, str]:
        """Return damaged checkpoints with their damage, as known before or found without reading large files."""
        seen = {path: self._damaged.get(path) or _glance(path) for path in self._folders()}
        return {path: damage for path, damage in seen.items() if damage is not None}

    def _verify(self, checkpoint: Checkpoint) -> str | None:
        if _has_sums(checkpoint.path, checkpoint.meta):
            return find_damage(checkpoint.path)
        logger.warning(f"{checkpoint.path}: saved by a version that kept no sums, so damage to it may go unnoticed")
        optional = {name for name in self.recoverables if "dataloader" in name or self.optional_recoverables.get(name)}
        return find_unreadable(checkpoint.path, [name + PARAMFILE_EXT for name in self.recoverables.keys() - optional])

    def _folders(self) -> list[Path]:
        return [path for path in self.checkpoints_dir.glob(f"{CKPT_PREFIX}+*") if path.is_dir()]

    def _list_checkpoint_dirs(self) -> list[Path]:
        damaged = self._look()
        return [path for path in self._folders() if path not in damaged]

    def _new_checkpoint_dirpath(self) -> Path:
        return _unfinished(super()._new_checkpoint_dirpath())

    def _custom_checkpoint_dirpath(self, name: str) -> Path:
        return _unfinished(super()._custom_checkpoint_dirpath(name))

    def _sweep(self) -> None:
        for path in self.checkpoints_dir.glob(f"{UNFINISHED}{CKPT_PREFIX}*"):
            shutil.rmtree(path)

    def _remove(self, path: Path) -> None:
        shutil.rmtree(path.rename(_unfinished(path)))


def _unfinished(path: Path) -> Path:
    return path.with_name(UNFINISHED + path.name)


def _has_sums(path: Path, meta: Mapping[str, Any]) -> bool:
    return "sums" in meta or (path / SUMS).exists()


def _glance(path: Path) -> str | None:
    """Return the damage that a checkpoint's metadata and file sizes show, or None; large files are not read."""
    try:
        meta = yaml.safe_load((path / METAFNAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{METAFNAME} is missing"
    except (OSError, ValueError, yaml.YAMLError):
        return f"{METAFNAME} cannot be read"
    if not isinstance(meta, dict) or not {"unixtime", "end-of-epoch"} <= meta.keys():
        return f"{METAFNAME} cannot be read"
    return find_damage(path, only=METAFNAME) if _has_sums(path, meta) else None
