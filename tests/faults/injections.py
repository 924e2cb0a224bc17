"""Processes that are killed, bits that are flipped, disks that are full; and the table of what survived."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lit_consistency.checkpointing.io import checkpoints, newest_valid
from lit_consistency.checkpointing.manifest import has_manifest

KILLS = int(os.environ.get("LIT_CONSISTENCY_KILLS", "20"))
"""Of every kind; fewer for a try."""
SECONDS = float(os.environ.get("LIT_CONSISTENCY_FAULT_SECONDS", "inf"))
"""After which a kind has had enough, however often it was struck."""


def fork(act: Callable[[], object], log: Path) -> int:
    """Act in a process of its own that imports nothing anew; its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        warnings.simplefilter("default")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        act()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int, seconds: float = 300.0) -> int | None:
    """The status of a process as a shell gives it; None if it lives on."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def kill(pid: int) -> None:
    """As the kernel does when memory is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def alive(pids: list[int]) -> list[int]:
    """Those that have not ended; a zombie has."""
    found = []
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(pid)
    return found


def children(pid: int) -> list[int]:
    """Of a process, and theirs."""
    with suppress(OSError):
        direct = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [*direct, *(further for child in direct for further in children(child))]
    return []


class Strikes:
    """Counts kills, and says whether there are to be more.

    Args:
        seed: of the moments.
        last: seconds; the moments are spread over the whole of what is disturbed.
        first: seconds in which nothing is disturbed, as imports.
    """

    def __init__(self, seed: int, last: float, first: float = 0.0) -> None:
        self.chance = random.Random(seed)
        self.first, self.last = first, last
        self.n = 0
        self.end = time.monotonic() + SECONDS

    @property
    def go_on(self) -> bool:
        """Whether to strike again."""
        return self.n < KILLS and time.monotonic() < self.end

    def moment(self) -> float:
        """Seconds after which to strike; long after the end when it was enough."""
        return self.chance.uniform(self.first, self.last) if self.go_on else 3000.0


def flipped(content: bytes, chance: random.Random) -> bytes:
    """With one other bit."""
    damaged = bytearray(content)
    damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


@contextmanager
def damaged_file(file: Path, content: bytes) -> Iterator[None]:
    """Something else in a file for a while."""
    before, times = file.read_bytes(), file.stat()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def check_run(run: Path) -> None:
    """What a killed run has left can be gone on from."""
    folder = run / "checkpoints"
    if any(has_manifest(path) for path in checkpoints(folder)):
        newest, skipped = newest_valid(folder)
        assert newest is not None, skipped


def numbers(run: Path) -> list[dict[str, Any]]:
    """Logged numbers without those of the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if not any(key.startswith(("speed/", "evaluation/")) for key in line)]
