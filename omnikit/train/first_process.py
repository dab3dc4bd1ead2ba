"""Lets one process fill a cache while the other processes of a training wait for a file that says it is done.

Filling may take hours. A barrier of torch.distributed would end the waiting processes after the time-out of its group.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speechbrain.utils.distributed import ddp_broadcast

from omnikit.errors import BAD_INPUT
from omnikit.files import make_folder, remove, write_text
from omnikit.torchrun import Share

WAITING = "waiting"
"""Name of the folder in a cache folder with the files that processes wait for."""
FAILED = "failed"
_POLL = 0.2  # seconds between looks at a file
_VISIBLE = 20.0  # seconds after which a file that another machine wrote is visible on a shared file system
_OLD = 24 * 3600.0  # seconds after which no process looks at a file any more


@contextmanager
def first_process(cache_folder: Path) -> Iterator[bool]:
    """Run a `with` block in one process first, then in the others; yield whether this process is the first.

    On a machine that does not share the cache folder with that of rank 0, its own local rank 0 is the first.

    Raises:
        SystemExit: in the waiting processes, if the first one has failed; it reports the error itself.
    """
    share = Share.of_torchrun()
    if share.processes == 1:
        yield True
        return
    begun, done = _files(cache_folder / WAITING, share)
    if share.rank == 0 or (_leads_machine() and not _appears(begun, _VISIBLE)):
        outcome = FAILED
        try:
            yield True
            outcome = ""
        finally:
            write_text(done, outcome)
        return
    _appears(done)
    if done.read_text(encoding="utf-8") == FAILED:
        raise SystemExit(BAD_INPUT)
    yield False


def _files(folder: Path, share: Share) -> tuple[Path, Path]:
    """Return the file that says that rank 0 has begun, which rank 0 writes, and the one that says that it is done."""
    name = uuid.uuid4().hex
    if share.rank == 0:
        make_folder(folder)
        for file in folder.iterdir():
            if time.time() - file.stat().st_mtime > _OLD:
                remove(file)
        write_text(folder / f"{name}.begun", "")
    name = ddp_broadcast(name)  # soon, since all processes begin at the same time
    return folder / f"{name}.begun", folder / f"{name}.done"


def _leads_machine() -> bool:
    return os.environ.get("LOCAL_RANK") == "0"


def _appears(file: Path, seconds: float = float("inf")) -> bool:
    """Wait until a file exists, or until some seconds have passed, and return whether it exists."""
    end = time.monotonic() + seconds
    while not file.is_file() and time.monotonic() < end:
        time.sleep(_POLL)
    return file.is_file()
