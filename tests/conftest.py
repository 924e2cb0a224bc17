"""Every test leaves the process as it found it: caches, environment, signals, process group."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.signatures import remember


@pytest.fixture(scope="session", autouse=True)
def _session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens go into a folder of the session, not the user's cache; LightningCLI never sees pytest's arguments."""
    arguments, sys.argv = sys.argv, ["lit_consistency"]
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        remember(monkeypatch)
        yield
    sys.argv = arguments
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """After ``pytest -m faults``: what was injected, how often, and what survived."""
    passed = terminalreporter.getreports("passed")
    rows = [value for report in passed for name, value in report.user_properties if name == "fault"]
    if rows:
        terminalreporter.write_sep("=", "what was injected")
        terminalreporter.write_line("| injected | times | what survived |\n|---|---|---|")
        for injected, times, survived in rows:
            terminalreporter.write_line(f"| {injected} | {times} | {survived} |")


@pytest.fixture(autouse=True)
def _unchanged() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    environment = dict(os.environ)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Root of the runs of one test."""
    return tmp_path / "runs"
