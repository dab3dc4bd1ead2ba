"""Pytest hooks that, after a quick test run, report which tests were not run because they are marked as long."""

from __future__ import annotations

import pytest

LEFT = pytest.StashKey[set]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT] = set()


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
