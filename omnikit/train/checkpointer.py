"""SpeechBrain's Checkpointer, safe against a kill while it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechbrain.utils.checkpoints import Checkpoint, Checkpointer
from speechbrain.utils.distributed import ddp_barrier

WHOLE = "WHOLE"


class WholeCheckpointer(Checkpointer):
    """Counts a checkpoint only when all of it is on disk.

    SpeechBrain writes the file by which it knows a checkpoint before the weights, so a run killed in between would find
    half of one when it is started again. Here a mark is written last, and no process goes on before: each of them lists
    the checkpoints to say which are old.
    """

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        saved = super().save_checkpoint(*args, **kwargs)
        if saved is not None:  # None on all but the main process
            (saved.path / WHOLE).touch()
        ddp_barrier()
        return saved

    def _list_checkpoint_dirs(self) -> list[Path]:
        return [path for path in super()._list_checkpoint_dirs() if (path / WHOLE).exists()]
