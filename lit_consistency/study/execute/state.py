"""The state of a job, from its folder alone: ``run.json`` of a training run, ``outcome.json`` of any job, the lease.

``outcome.json`` holds the attempts, written by the worker that made them: where and when, how it ended, and the last
lines of what it said. It is written before a job starts and after it has ended, never while it runs: a training run
removes what it takes for unfinished files of its folder when it starts.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from lit_consistency.records.atomic import write_json
from lit_consistency.records.lease import is_live
from lit_consistency.records.run_folder import FINISHED, RunFolder

FILE = "outcome.json"
LOG = "log.txt"
TAIL = 15
"""Lines of a log that are shown of an error."""


class State(str, Enum):
    """Of a job. Only ``finished`` has numbers that count."""

    MISSING = "missing"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out of memory"
    INTERRUPTED = "interrupted"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Attempt:
    """One process that worked on a job.

    Args:
        command: of the package, as ``fit``.
        host: where it ran.
        started: seconds since 1970, by the host's clock.
        pid: of the process; 0 while it runs.
        ended: seconds since 1970; None while it runs, or when the worker died with it.
        status: exit status, or the signal's number below zero.
        state: how it ended.
        error: the last lines of what it said, if it did not finish.
        beside: other jobs that ran on the host meanwhile.
        cpu_seconds: of the process and its children.
    """

    command: str
    host: str
    started: float
    pid: int = 0
    ended: float | None = None
    status: int | None = None
    state: State = State.RUNNING
    error: str = ""
    beside: int = 0
    cpu_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Wall time; 0 as long as it is not known."""
        return self.ended - self.started if self.ended is not None else 0.0


def read_attempts(folder: Path) -> list[Attempt]:
    """The attempts at a job, the latest last; empty where none was made by a worker."""
    try:
        with open(f"{folder}/{FILE}", encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return []
    return [Attempt(**{**attempt, "state": State(attempt["state"])}) for attempt in json.loads(text)["attempts"]]


def write_attempts(folder: Path, attempts: Sequence[Attempt]) -> None:
    """Write all attempts; the caller holds the lease."""
    write_json(folder / FILE, {"attempts": [{**asdict(a), "state": a.state.value} for a in attempts]})


def seconds_of(folder: Path) -> float:
    """Wall time of all attempts at a job together: what it took, however often it was interrupted."""
    return sum(attempt.seconds for attempt in read_attempts(folder))


# -------------------- the state of a folder


def state_of(folder: Path) -> State:
    """The state of the job that fills the folder.

    A live lease: running, whatever stands there; else see ``state_at_rest``.
    """
    return State.RUNNING if is_live(folder) else state_at_rest(folder)


def state_at_rest(folder: Path) -> State:
    """The state of a job on which nobody else works.

    - ``run.json`` of a run that trained to its end: finished. It is written last, so all else is there.
    - The latest attempt: as it ended; interrupted if nobody has seen its end. A ``fit`` that ended well counts only
      with its ``run.json``.
    - A run that was started by hand: failed, diverged or out of memory by its error; else interrupted.
    """
    run = RunFolder(folder)
    record = run.read_record()
    if record.get("status") == FINISHED:
        return State.FINISHED
    attempts = read_attempts(folder)
    if attempts:
        last = attempts[-1]
        if last.ended is None:
            return State.INTERRUPTED
        if last.state is not State.FINISHED:
            return last.state
        if last.command != "fit":
            return State.FINISHED
    if record.get("status") == "failed" and record.get("error"):
        return classify(record["error"])
    return State.INTERRUPTED if record else State.MISSING


# -------------------- how an attempt ended

CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, getattr(signal, "SIGBUS", signal.SIGSEGV))
"""Signals that a process raises by its own fault; all others come from elsewhere, and interrupt it."""
EXCEPTION = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception))\b(?=:|\s*$)", re.MULTILINE)
# torch raises a RuntimeError for the memory of the processor and of libraries, C++ ends by itself
MEMORY = re.compile(
    r"can't allocate memory|not enough memory|Cannot allocate memory|CUDA error: out of memory"
    r"|CU(?:BLAS|SOLVER|SPARSE)_STATUS_ALLOC_FAILED|std::bad_alloc|Unable to allocate [\d.]+ [KMGT]iB"
)


def classify(said: str) -> State:
    """Failed, diverged or out of memory, by the last exception in what a process said."""
    named = list(EXCEPTION.finditer(said))
    name = named[-1][1] if named else ""
    if name == "NonFiniteError":
        return State.DIVERGED
    last = said[named[-1].start() :] if named else said
    memory = name in ("OutOfMemoryError", "MemoryError") or MEMORY.search(last)
    return State.OUT_OF_MEMORY if memory else State.FAILED


def ended(attempt: Attempt, folder: Path, *, status: int, said: str, killed_for_memory: bool = False) -> Attempt:
    """The attempt with the state in which it ended.

    Args:
        attempt: as it was started.
        folder: of the job.
        status: exit status, or the signal's number below zero.
        said: the end of its output.
        killed_for_memory: whether the kernel has killed a process for want of memory meanwhile.
    """
    number = -status if status < 0 else status - 128 if status > 128 else 0
    run = RunFolder(folder)
    if attempt.command == "fit" and run.is_finished:
        state, error = State.FINISHED, ""  # whatever happened to the process after its last word
    elif status == 0 and attempt.command == "fit":
        state, error = State.FAILED, f"ended with status 0, but {run.record_file} does not say {FINISHED}"
    elif status == 0:
        state, error = State.FINISHED, ""
    elif number == signal.SIGKILL and killed_for_memory:
        state, error = State.OUT_OF_MEMORY, "killed by the kernel for want of memory"
    elif number and number not in CRASHES:
        state, error = State.INTERRUPTED, signal_name(number)
    elif number:
        memory = MEMORY.search(said)
        state, error = (
            State.OUT_OF_MEMORY if memory else State.FAILED,
            f"{signal_name(number)}\n{last_lines(said)}".strip(),
        )
    else:
        state, error = classify(said), last_lines(said) or f"ended with status {status} and without a word"
    return replace(attempt, status=status, state=state, error=error)


def last_lines(said: str) -> str:
    """What a process said last: an error of its call from its first line on, else the end of a traceback."""
    lines = said.strip().splitlines()
    start = max((i for i, line in enumerate(lines) if line.startswith("error:")), default=0)
    return "\n".join(lines[start:][-TAIL:])


def headline(error: str) -> str:
    """The line of an error that says most: its exception, or its beginning."""
    named = list(EXCEPTION.finditer(error))
    return error[named[-1].start() if named else 0 :].partition("\n")[0]


def signal_name(number: int) -> str:
    """As ``SIGTERM``."""
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals
        return f"signal {number}"


def oom_kills() -> int:
    """Processes that the kernel of this host has killed for want of memory, ever; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
