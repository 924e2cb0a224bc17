"""A process that imports once, and forks a process for every command: ``python -m ... forkserver DESCRIPTOR``.

The imports of a training run take as long as hundreds of steps of a small model. Here they are made once; every
command then runs in a fork of its own, as ``python -m`` would run it: its own ``__main__``, ``sys.argv``, session, log
and exit. A crash takes one command with it. ``multiprocessing`` has such a server too, but one for a whole program, and
so for one number of threads; its processes leave without their exit handlers, and have another ``__main__``, by which
Lightning starts the other ranks of a run.

No thread is started before a fork: with one thread a process the imports start none, with more those of OpenBLAS, which
stops and restarts them around a fork. Processes die with the server (``PR_SET_PDEATHSIG``); when the driver dies, they
get SIGTERM, at which a run saves, and ``GRACE`` seconds. Elsewhere than on Linux every process imports for itself.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

GRACE = 30.0
"""Seconds from SIGTERM to SIGKILL when the driver is gone; less than after which its leases expire elsewhere."""
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Import, serve until the driver closes its end, and in every fork run the command and leave as it leaves."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    setup = json.loads(channel.recv(1 << 16))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever signals all processes means the driver and the commands
    if setup["import_once"]:
        for name in setup["preload"]:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()  # what is shared with the forks is not to be copied by their collections
    _send(channel, {"ready": os.getpid()})
    request = _Server(channel).serve()
    if request is None:
        return
    sys.argv = [setup["module"], *request["argv"]]
    if setup["import_once"]:
        runpy.run_module(setup["module"], run_name="__main__", alter_sys=True)
    else:
        os.execv(sys.executable, [sys.executable, "-m", *sys.argv])


class _Server:
    """Starts processes, signals them, and tells of their ends.

    Args:
        channel: to the driver; lines of JSON.
    """

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.children: set[int] = set()
        self.libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def serve(self) -> dict[str, Any] | None:
        """Serve to the end of the driver; in a fork, the request that it is to carry out."""
        buffer = b""
        with _woken_by_children() as wake:
            while True:
                channel = self.channel.fileno()
                readable, _, _ = select.select([channel, wake], [], [], 1.0)
                self._reap(wake)
                if channel not in readable:
                    continue
                received = self._receive()
                if not received:
                    self._end_all(wake)
                    return None
                *lines, buffer = (buffer + received).split(b"\n")
                for line in lines:
                    request = json.loads(line)
                    if "signal" in request:
                        self._signal(request["pid"], request["signal"])
                    elif self._fork(request) == 0:
                        return request

    def _receive(self) -> bytes:
        try:
            return self.channel.recv(1 << 16)
        except ConnectionResetError:
            return b""

    def _fork(self, request: dict[str, Any]) -> int:
        server = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            self.children.add(pid)
            _send(self.channel, {"started": pid})
            return pid
        if self.libc is not None:
            self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL.value)
            if os.getppid() != server:  # it died before the line above
                os._exit(1)
        os.setsid()  # the terminal's Ctrl-C goes to the driver alone
        self.channel.close()
        _open_log(request["log"])
        os.environ.update(request["environment"])
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # Ray blocks interrupts
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        return 0

    def _signal(self, pid: int, number: int) -> None:
        """To a process; SIGKILL to all that it has started too."""
        if pid in self.children:  # its number is its own until it is waited for
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                if number == signal.SIGKILL:
                    os.killpg(pid, number)

    def _reap(self, wake: int) -> None:
        with suppress(BlockingIOError):
            os.read(wake, 4096)
        for pid in list(self.children):
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if not done:
                continue
            self.children.remove(pid)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # loaders and ranks that it left behind
            end = {
                "ended": pid,
                "status": os.waitstatus_to_exitcode(status),
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
            }
            _send(self.channel, end)

    def _end_all(self, wake: int) -> None:
        """The driver is gone: let the commands save, then end them."""
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            for pid in list(self.children):
                self._signal(pid, number)
            end = time.monotonic() + patience
            while self.children and time.monotonic() < end:
                select.select([wake], [], [], 0.1)
                self._reap(wake)


@contextmanager
def _woken_by_children() -> Iterator[int]:
    """A descriptor that becomes readable when a child has ended."""
    wake, write = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing is written
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield wake
    finally:
        signal.set_wakeup_fd(-1)
        os.close(wake)
        os.close(write)


def _open_log(path: str) -> None:
    """Standard output and errors go to the end of the file, line by line, so that ``tail -f`` shows them."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, standard)
    os.close(log)
    os.close(nothing)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()  # a crash says where


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # a driver that is gone is noticed by reading
        channel.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
