"""SpeechBrain's Checkpointer made safe against kills, full disks and damaged files; it can write during training."""

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
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    is_distributed_initialized,
    main_process_only,
)
from torch import nn
from torch.optim import Optimizer

from omnikit.errors import BAD_INPUT, TORCH_CANNOT_WRITE, Stopped, one_line, writing
from omnikit.torchrun import Share
from omnikit.train.background import Background
from omnikit.train.checksums import SUMS, find_damage, find_unreadable, flush_folder, flushed, write_sums
from omnikit.train.frozen_weights import fingerprints
from omnikit.train.process_group import every_process
from omnikit.train.shard_sums import ShardSums, shard_of
from omnikit.train.stored_state import (
    HostCopies,
    is_sharded,
    load_module,
    load_optimizer,
    read_states,
    rows_of,
    trained_state,
)
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

    Weights and optimiser states are copied to CPU memory and written by a thread; with `aside`, training goes on
    meanwhile. Frozen weights are not written: a run loads them again when it starts, and the checkpoint's metadata has
    their fingerprints. Processes that share the weights write one file each, see `omnikit.train.stored_state`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._damaged: dict[Path, str] = {}  # checkpoint -> damage that the last search found
        self._whole: set[Path] = set()  # checkpoints that this process has verified
        self._copies = HostCopies()
        self._writer = Background("checkpoint")
        self._frozen: dict[str, str] | None = None  # fingerprints of frozen weights by part
        self._saves = 0

    def identify_frozen(self) -> None:
        """Compute the fingerprints of frozen weights; call it before processes share out the weights."""
        modules = [module for module in self.recoverables.values() if isinstance(module, nn.Module)]
        self._frozen = {part: found for module in modules for part, found in fingerprints(module).items()}

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
        saved = self._begin(meta, end_of_epoch, name, verbosity, lambda: None)
        self.wait()
        return saved

    def save_and_keep_only(
        self,
        meta: Mapping[str, Any] = {},
        end_of_epoch: bool = True,
        name: str | None = None,
        num_to_keep: int = 1,
        keep_recent: bool = True,
        importance_keys: Sequence[Callable[[Checkpoint], Any]] = (),
        max_keys: Sequence[str] = (),
        min_keys: Sequence[str] = (),
        ckpt_predicate: Callable[[Checkpoint], bool] | None = None,
        verbosity: int = logging.INFO,
        *,
        aside: bool = False,
    ) -> None:
        """Save a checkpoint and delete older ones as SpeechBrain does, except for the newest `KEPT`.

        Args:
            aside: return when all values are copied to CPU memory; files are written while training goes on. Errors of
                writing are raised by the next call of a method, for example `check`.

        Raises:
            ValueError: weights are not finite, or the disk is full; existing checkpoints stay.
        """
        keys = [*importance_keys, *([ckpt_recency] if keep_recent else [])]
        choices = _choices(min_keys, max_keys, keys)
        self._begin(
            meta, end_of_epoch, name, verbosity,
            lambda: self._delete(choices, num_to_keep, ckpt_predicate, verbosity),
        )  # fmt: skip
        if not aside:
            self.wait()

    def check(self) -> None:
        """Raise the error of a checkpoint that was being written aside, without waiting for it.

        Raises:
            ValueError: the disk is full.
        """
        self._writer.check()

    def join(self) -> None:
        """Wait until this process has written its part of a checkpoint.

        Raises:
            ValueError: the disk is full.
        """
        if (error := self._writer.finish()) is not None:
            raise error

    def wait(self) -> None:
        """Wait until all processes have written the last checkpoint, and it has its name.

        Raises:
            ValueError: the disk is full.
            Stopped: another process could not write its part.
        """
        error = self._writer.finish()
        messages = [message for message in every_process(None if error is None else str(error)) if message is not None]
        if error is not None and (not is_distributed_initialized() or if_main_process()):
            raise error
        if messages:
            raise Stopped(messages[0], status=BAD_INPUT)

    def find_checkpoint(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        """Return the first undamaged checkpoint in SpeechBrain's order, or None if there are no checkpoints.

        The main process verifies the checksums, logs a warning for each damaged checkpoint and broadcasts the result.

        Raises:
            ValueError: all checkpoints are damaged.
        """
        self.wait()
        found, problem = self._find_whole(*args, **kwargs)
        if problem is not None:
            raise ValueError(problem)
        return found

    def find_checkpoints(self, *args: Any, **kwargs: Any) -> list[Checkpoint]:
        """Return the checkpoints in SpeechBrain's order, after that which is being written aside."""
        self.join()
        return super().find_checkpoints(*args, **kwargs)

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint; only tensors and plain values are unpickled.

        Raises:
            ValueError: the checkpoint holds other Python objects, or belongs to other frozen weights.
        """
        self._refuse_other_frozen(checkpoint)
        try:
            with self._hooks(load=lambda object_, path, _: self._load(object_, path, checkpoint)):
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
        self.wait()
        if if_main_process():
            choices = _choices(min_keys or (), max_keys or (), importance_keys)
            self._delete(choices, num_to_keep, ckpt_predicate, verbosity)
        ddp_barrier()

    def _delete(
        self,
        choices: Sequence[Mapping[str, Any]],
        num_to_keep: int,
        predicate: Callable[[Checkpoint], bool] | None,
        verbosity: int,
    ) -> None:
        kept = self._paths(max_num_checkpoints=KEPT)
        listed = []
        for choice in choices:
            found = self._paths(**choice, ckpt_predicate=predicate)
            listed += found
            kept += found[:num_to_keep]
        for path in {*listed} - {*kept}:
            self._remove(path)
            logger.log(verbosity, f"Deleted checkpoint in {path}")

    def _begin(
        self, meta: Mapping[str, Any], end_of_epoch: bool, name: str | None, verbosity: int, then: Callable[[], None]
    ) -> Checkpoint | None:
        """Copy all values and start the thread that writes them; return the checkpoint as it will be.

        Args:
            then: function that the main process's thread calls when the checkpoint has its name.
        """
        self.wait()
        if self._frozen is None:
            self.identify_frozen()
        modules = {key: found for key, found in self.recoverables.items() if isinstance(found, nn.Module)}
        self._refuse_not_finite(modules)
        states: dict[Path, Any] = {}
        shards = Share.of_torchrun().processes if any(is_sharded(trained_state(m)) for m in modules.values()) else 1
        meta = {**meta, "sums": SUMS, "frozen": self._frozen, "shards": shards}
        with self._writing():
            if if_main_process():
                self._sweep()
            with self._hooks(save=lambda object_, path: self._copy(object_, path, shards, states)):
                saved = super().save_checkpoint(meta, end_of_epoch, name, logging.DEBUG)
            ddp_barrier()  # some objects are saved by all processes together
        self._saves += 1
        folder = None if saved is None else saved.path  # None on all but the main process
        exchange = ShardSums(self._saves, shards)
        self._writer.start(lambda: self._write(states, folder, exchange, end_of_epoch, verbosity, then))
        return saved and _renamed(saved)

    def _write(
        self,
        states: Mapping[Path, Any],
        folder: Path | None,
        exchange: ShardSums,
        end_of_epoch: bool,
        verbosity: int,
        then: Callable[[], None],
    ) -> None:
        """Write the copied states of this process; on the main process also wait for those of the others and finish."""
        with self._writing(), exchange.failing():
            for path, state in states.items():
                torch.save(state, path)
            if folder is None:
                exchange.give({path.name: flushed(path) for path in states})
                return
            write_sums(folder, exchange.take())
            self._finish(folder, end_of_epoch, verbosity)
            then()

    def _copy(self, found: nn.Module | Optimizer, path: Path, shards: int, states: dict[Path, Any]) -> None:
        """Copy a state that is to be written: all of it on the main process, or the rows of each process."""
        if if_main_process() or shards > 1:
            state = trained_state(found) if isinstance(found, nn.Module) else found.state_dict()
            states[shard_of(path, Share.of_torchrun().rank)] = self._copies.copy(path.name, state)

    def _load(self, found: nn.Module | Optimizer, path: Path, checkpoint: Checkpoint) -> None:
        states = read_states(shard_of(path, rank) for rank in range(checkpoint.meta.get("shards", 1)))
        if isinstance(found, nn.Module):
            load_module(found, states, "frozen" not in checkpoint.meta, checkpoint.path)
        else:
            load_optimizer(found, states)

    @contextmanager
    def _hooks(self, **hooks: Callable[..., None]) -> Iterator[None]:
        """Save or load modules and optimisers by given functions in a `with` block, where no other hook is set."""
        before = self.custom_save_hooks, self.custom_load_hooks
        large = [key for key, found in self.recoverables.items() if isinstance(found, nn.Module | Optimizer)]
        new = {kind: dict.fromkeys(large, hook) for kind, hook in hooks.items()}
        self.custom_save_hooks = {**new.get("save", {}), **before[0]}
        self.custom_load_hooks = {**new.get("load", {}), **before[1]}
        try:
            yield
        finally:
            self.custom_save_hooks, self.custom_load_hooks = before

    def _refuse_not_finite(self, modules: Mapping[str, nn.Module]) -> None:
        """Refuse trained weights with NaN or infinity, in all processes together where they share the weights."""
        for key, module in modules.items():
            state, problem = trained_state(module), None
            try:
                rows = {name: rows_of(tensor) for name, tensor in state.items()}
                refuse_not_finite(rows, f"{self.checkpoints_dir}: no checkpoint is saved: {key}")
            except ValueError as error:
                problem = str(error)
            problems = every_process(problem) if is_sharded(state) else [problem]
            if any(problems):
                raise ValueError(next(filter(None, problems)))

    def _refuse_other_frozen(self, checkpoint: Checkpoint) -> None:
        if self._frozen is None:
            self.identify_frozen()
        stored = checkpoint.meta.get("frozen", self._frozen)  # older versions stored frozen weights as well
        other = sorted(part for part in {*stored, *self._frozen} if stored.get(part) != self._frozen.get(part))
        if other:
            raise ValueError(
                f"{checkpoint.path}: belongs to other frozen weights of {', '.join(other)}; start with the "
                "weights that the run began with (--initial_weights, or those of the parts), or choose another "
                "--output_folder"
            )

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

    def _finish(self, folder: Path, end_of_epoch: bool, verbosity: int) -> None:
        """Rename a complete checkpoint to its final name, and delete damaged ones."""
        path = _final(folder)
        folder.rename(path)
        flush_folder(self.checkpoints_dir)
        kind = "end-of-epoch" if end_of_epoch else "intra-epoch"
        logger.log(verbosity, f"Saved an {kind} checkpoint in {path}")
        for damaged in self._look():
            self._remove(damaged)
            logger.info(f"Deleted the damaged checkpoint in {damaged}")
        self._damaged.clear()

    @main_process_only
    def _find_whole(self, *args: Any, **kwargs: Any) -> tuple[Checkpoint | None, str | None]:
        """Return the checkpoint to load and None, or None and an error message if all checkpoints are damaged."""
        known, damaged, chosen = set(self._damaged), self._look(), None
        for checkpoint in Checkpointer.find_checkpoints(self, *args, **kwargs):
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
        return [checkpoint.path for checkpoint in Checkpointer.find_checkpoints(self, **choice)]

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


def _final(path: Path) -> Path:
    return path.with_name(path.name.removeprefix(UNFINISHED))


def _renamed(saved: Checkpoint) -> Checkpoint:
    """Return an unfinished checkpoint as it is described when it has its final name."""
    path = _final(saved.path)
    return Checkpoint(path, saved.meta, {name: path / file.name for name, file in saved.paramfiles.items()})


def _choices(
    min_keys: Sequence[str], max_keys: Sequence[str], importance_keys: Sequence[Callable[[Checkpoint], Any]]
) -> list[dict[str, Any]]:
    """Return the arguments of `find_checkpoints` for each order in which some checkpoints are kept."""
    lowest, highest = [{"min_key": key} for key in min_keys], [{"max_key": key} for key in max_keys]
    return [*lowest, *highest, *({"importance_key": key} for key in dict.fromkeys(importance_keys))]


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
