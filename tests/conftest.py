"""Pytest hooks: a report of the long tests that a quick run leaves out, and a fix for hypothesis beside speechbrain."""

from __future__ import annotations

import sys

import pytest

LEFT = pytest.StashKey[set]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT] = set()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems() -> None:
    _give_lazy_modules_a_file()


def pytest_runtest_setup() -> None:
    _give_lazy_modules_a_file()


def _give_lazy_modules_a_file() -> None:
    """Give speechbrain's lazy modules a `__file__`.

    Hypothesis reads that of every module; without it, a lazy module begins an import that fails where an optional
    package is missing.
    """
    if (lazy := sys.modules.get("speechbrain.utils.importutils")) is not None:
        lazy.LazyModule.__file__ = None


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long"):
            item.config.stash[LEFT].add(item.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a process of xdist, which alone collects
        session.config.workeroutput["left"] = sorted(session.config.stash[LEFT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    node.config.stash[LEFT].update(getattr(node, "workeroutput", {}).get("left", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left = sorted(config.stash[LEFT])
    if left:
        terminalreporter.section("left to `make test-all`")
        for name in left:
            terminalreporter.write_line(name)
        terminalreporter.write_line(f"{len(left)} long tests were not run")
