"""Commands of this package as processes of this machine: one at a time, or many from a server that imports once.

Their output goes to files; given up: showing it while they run, which ``tail -f`` of the file does.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_consistency.records.processes import bind_children, start_of
from lit_consistency.study.execute.state import last_lines
from lit_consistency.study.job import Job

PASSED_ON = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals at which a training run saves a checkpoint; an interrupt of the terminal reaches the child by itself."""
END = 1 << 16
"""Bytes of a log in which its last error stands."""
START = 600.0
"""Seconds for the imports of a server: a slow shared file system under a hundred workers."""


class ProcessFailed(RuntimeError):
    """A command ended with an error of its own."""


# -------------------- one command


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
            env=bind_children(signal.SIGTERM, dict(os.environ)),  # at which a run saves, should this process be killed
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
    last = last_lines(end_of(log, start))
    if status == 2:
        raise ValueError(f"{arguments[0]} refused its options ({log}):\n{last}")
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


def end_of(log: Path, start: int = 0) -> str:
    """The last part of what was added to a log after byte ``start``."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - END))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


# -------------------- many commands


@dataclass(frozen=True)
class Entry:
    """What a worker runs as ``python -m MODULE``, and what it imports beforehand.

    Args:
        module: of the command line.
        preload: modules whose import takes long; by name, because studies themselves do without torch.
    """

    module: str = "lit_consistency"
    preload: tuple[str, ...] = ("lit_consistency.cli.fit",)

    def command(self, job: Job) -> str:
        """The command that does the same by hand, to the last bit."""
        return f"OMP_NUM_THREADS={job.threads} {shlex.join(['python', '-m', self.module, *job.argv])}"


def environment_of(job: Job, devices: Sequence[str] | None) -> dict[str, str]:
    """Variables of a job's process: number of threads, and the GPUs that it may see.

    Args:
        job: the job.
        devices: GPUs that it was given; None where there are none to give.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(job.threads))
    return threads if devices is None else {**threads, "CUDA_VISIBLE_DEVICES": ",".join(devices)}


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Args:
        pid: its number.
        status: exit status, or the signal's number below zero.
        cpu_seconds: of it and its children.
    """

    pid: int
    status: int
    cpu_seconds: float = 0.0


class ForkServer:
    """A server of processes with one environment, in which all of them start.

    Args:
        entry: what they run.
        environment: added to this process's own, before anything is imported.
        import_once: fork after the imports; else every process imports for itself.

    Raises:
        ProcessFailed: the imports failed.
    """

    def __init__(
        self, entry: Entry, environment: Mapping[str, str], import_once: bool = sys.platform == "linux"
    ) -> None:
        self.alive = True
        self._buffer = b""
        self._ended: list[Ended] = []
        self._running: set[int] = set()
        self.channel, other = socket.socketpair()
        with other, tempfile.TemporaryFile() as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lit_consistency.study.execute.forkserver", str(other.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=[other.fileno()],
                env={**os.environ, **environment},
                start_new_session=True,
            )
            other.close()  # so that the end of the server is the end of the channel
            self._send({"module": entry.module, "preload": entry.preload, "import_once": import_once})
            if not self._await("ready"):
                self._process.kill()  # if it is neither dead nor ready
                self._process.wait()
                self.channel.close()
                said.seek(0)
                raise ProcessFailed(f"the server of processes did not start:\n{said.read().decode(errors='replace')}")

    @property
    def pid(self) -> int:
        """Number of the server's process, which lives as long as any of its commands."""
        return self._process.pid

    def start(self, argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        """Start a command; its process number, or 0 when the server is dead."""
        self._send({"argv": list(argv), "log": str(log), "environment": dict(environment)})
        message = self._await("started")
        return int(message["started"]) if message else 0

    def poll(self) -> list[Ended]:
        """Processes that have ended since the last call, without waiting."""
        while self.alive and select.select([self.channel], [], [], 0)[0]:
            self._receive()
        ended, self._ended = self._ended, []
        return ended

    def signal(self, pid: int, number: int) -> None:
        """Signal a command, if it still runs."""
        self._send({"signal": number, "pid": pid})

    def close(self) -> None:
        """End what still runs, as when this process dies, and wait for it."""
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)
        self.channel.close()
        self._process.wait()
        self.alive = False

    # -------------------- channel

    def _send(self, message: dict[str, Any]) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # noticed by reading
            self.channel.sendall(json.dumps(message).encode() + b"\n")

    def _await(self, key: str) -> dict[str, Any] | None:
        end = time.monotonic() + START
        while self.alive and time.monotonic() < end:
            if select.select([self.channel], [], [], 1.0)[0]:
                for message in self._receive():
                    if key in message:
                        return message
        return None

    def _receive(self) -> list[dict[str, Any]]:
        """Read what has come; ends are kept until they are asked for."""
        try:
            received = self.channel.recv(1 << 16)
        except ConnectionResetError:
            received = b""
        if not received:
            self._bury()
            return []
        *lines, self._buffer = (self._buffer + received).split(b"\n")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            if "started" in message:
                self._running.add(message["started"])
            if "ended" in message:
                self._running.discard(message["ended"])
                self._ended.append(Ended(message["ended"], message["status"], message["cpu_seconds"]))
        return messages

    def _bury(self) -> None:
        """The server was killed, and with it all commands; wait until the kernel has done it."""
        self.alive = False
        self._process.wait()
        for pid in self._running:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # what they have started
            end = time.monotonic() + START
            while start_of(pid) is not None and time.monotonic() < end:
                time.sleep(0.01)
            self._ended.append(Ended(pid, -signal.SIGKILL))
        self._running.clear()


class LocalProcesses:
    """Processes of jobs on this machine, from one server for each number of threads.

    Args:
        entry: what they run.
        import_once: see ``ForkServer``.
    """

    def __init__(self, entry: Entry, import_once: bool = sys.platform == "linux") -> None:
        self.entry = entry
        self.import_once = import_once
        self._servers: dict[int, ForkServer] = {}
        self._of: dict[int, ForkServer] = {}

    def __enter__(self) -> LocalProcesses:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def server(self, job: Job) -> ForkServer:
        """The server of the job's number of threads, started if need be; its process stands in the job's lease."""
        server = self._servers.get(job.threads)
        if server is None or not server.alive:
            server = ForkServer(self.entry, environment_of(job, None), self.import_once)
            self._servers[job.threads] = server
        return server

    def start(self, job: Job, log: Path, devices: Sequence[str] | None) -> int:
        """Start a job; its process number, or 0 when its server died just now."""
        server = self.server(job)
        pid = server.start(job.argv, log, environment_of(job, devices))
        if pid:
            self._of[pid] = server
        return pid

    def wait(self, seconds: float) -> list[Ended]:
        """Processes that have ended; waits for the next one, but not for longer than this."""
        alive = [server for server in self._servers.values() if server.alive]
        if alive:
            select.select([server.channel for server in alive], [], [], seconds)
        else:
            time.sleep(seconds)
        ended = [end for server in {*self._of.values()} for end in server.poll()]
        for end in ended:
            self._of.pop(end.pid, None)
        return ended

    def signal(self, pid: int, number: int) -> None:
        """Signal a job's process, if it still runs."""
        if pid in self._of:
            self._of[pid].signal(pid, number)

    def close(self) -> None:
        """End all servers, and what still runs."""
        for server in self._servers.values():
            server.close()
