"""A server that also reports what it holds: files, threads, slots, sessions, objects of requests and memory.

    python -m tests.serve.watched_server STEPS SECONDS    # omnikit serve --max_steps STEPS --request_seconds SECONDS
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from omnikit.conversation import Conversation
from omnikit.errors import bad_input_exits
from omnikit.generate import Request
from omnikit.serve import app, run
from omnikit.serve.realtime.connection import Connection
from omnikit.serve.realtime.session import RealtimeSession
from omnikit.serve.rest.answers import MeasuredAnswer
from omnikit.serve.settings import ServerSettings

FIGURES = "/figures"
KEPT = (Connection, Conversation, MeasuredAnswer, RealtimeSession, Request)
"""Classes of which no object may be left when all requests and sessions have ended."""
POOLS = ("omnikit-files", "omnikit-turns", "AnyIO worker thread")
"""Names of thread pools, which start threads up to their limits when they are first needed; AnyIO's reads the page."""


def add_figures(served: FastAPI) -> None:
    """Add a call that returns what the server holds; `trim=true` collects garbage and returns memory before."""
    serving = served.state.serving

    @served.get(FIGURES)
    async def figures(trim: bool = False) -> dict[str, Any]:
        loads = [omni.decoder.load for omni in serving.systems.values()]
        pools = sum(thread.name.startswith(POOLS) for thread in threading.enumerate())
        found = {
            "files": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")) - pools,
            "waiting": sum(load[0] for load in loads),
            "slots": sum(load[1] for load in loads),
            "sessions": serving.sessions,
            "requests": len(serving.running) - 1,  # this one is one of them
        }
        return found | trimmed() if trim else found


def trimmed() -> dict[str, Any]:
    """Return the objects that are left after a garbage collection, and memory in kB; reset its peak."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    left = Counter(type(each).__name__ for each in gc.get_objects() if type(each) in KEPT)
    status = Path("/proc/self/status").read_text()
    memory = {name: int(re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)[1]) for name in ("VmRSS", "VmHWM")}
    Path("/proc/self/clear_refs").write_text("5")
    return {"left": dict(left), "memory": memory["VmRSS"], "peak": memory["VmHWM"]}


def create_app(serving: Any, create: Any = app.create_app) -> FastAPI:
    """Return the server's application with the call for its figures before the page, which takes all other paths."""
    served = create(serving)
    routes = served.router.routes
    before = len(routes)
    add_figures(served)
    routes[:] = routes[before:] + routes[:before]
    return served


if __name__ == "__main__":
    run.create_app = create_app
    with bad_input_exits():
        steps, seconds = int(sys.argv[1]), float(sys.argv[2])
        run.run([], ServerSettings(port=0, request_seconds=seconds), run.SystemOptions(max_steps=steps))
