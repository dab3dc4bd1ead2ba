"""A task that runs in a thread while training goes on; its error is raised where the training looks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """A thread that runs one task at a time.

    The thread is no daemon: a process that ends by itself still completes the task.
    """

    def __init__(self, name: str):
        self.name = name
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self, task: Callable[[], None]) -> None:
        """Run a task beside the training; call `finish` for the former one before."""
        self.thread = threading.Thread(target=self._run, args=(task,), name=self.name)
        self.thread.start()

    def finish(self) -> BaseException | None:
        """Wait for the task, and return its error, which is forgotten then, or None."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        return error

    def check(self) -> None:
        """Raise the error of the task if it has failed; do not wait for it."""
        if self.error is not None and (error := self.finish()) is not None:
            raise error

    def _run(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # raised in the main thread
            self.error = error
