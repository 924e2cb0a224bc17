"""A command of this package as a process of its own: its output goes to a file, its signals are passed on.

Given up: showing the output while it runs; ``tail -f`` of the file does.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)
"""Signals at which a training run saves a checkpoint; an interrupt of the terminal reaches the child by itself."""
TAIL = 15


class ProcessFailed(RuntimeError):
    """A command ended with an error of its own."""


def run_command(arguments: Sequence[str], log: Path) -> None:
    """Run ``python -m lit_consistency ARGUMENTS`` to its end.

    Args:
        arguments: command and options.
        log: file to which the output is added.

    Raises:
        ValueError: the command refused its options (status 2); the message is the command's.
        ProcessFailed: any other error; the message holds the last lines of the output.
        SystemExit: a signal ended the command; the status is the command's.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        start = output.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "lit_consistency", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        with _passing_on(child):
            try:
                status = child.wait()
            except KeyboardInterrupt:
                child.wait()
                raise
    if status == 0:
        return
    if status > 128 or status < 0:
        raise SystemExit(status if status > 0 else 128 - status)
    said = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    if status == 2:
        start = max((i for i, line in enumerate(said) if line.startswith("error:")), default=-1)
        raise ValueError("\n".join([f"{arguments[0]} refused its options ({log}):", *said[start:]]))
    last = "\n".join(said[-TAIL:])
    raise ProcessFailed(f"{arguments[0]} ended with status {status}; the end of {log}:\n{last}")


@contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return

    def pass_on(number: int, frame: object) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
