"""Who works on a folder: a lease that only a living process holds, on one host or on several that share the folder.

``lease.json`` (of a study's job) or ``.writer.json`` (of the run that writes the folder) names the host, the processes
and a token. It is taken, taken over and given back under a mutex (``flock`` on ``.lease.lock``, held for milliseconds),
which the kernel releases when its holder dies. A lease ends

- on its own host as soon as none of its processes lives, told apart from later ones of the same number by their start;
- for another host when it was not renewed for ``EXPIRES`` seconds. Times are those of the file system: every stamp is
  set by the server of the folder, so that clocks of hosts may differ.

On NFS ``flock`` locks all clients since Linux 2.6.12; a file system without it (Lustre mounted without ``-o flock``)
raises an ``OSError``, because two drivers could not be kept apart there; a run goes on with a warning. Given up: a host
that is frozen for longer than ``EXPIRES`` and wakes up may run a job beside the one that took it over, until its next
renewal, which stops it.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lit_consistency.records.atomic import write_json
from lit_consistency.records.processes import start_of, this_host

FILE = "lease.json"
WRITER = ".writer.json"
"""The lease of a run on its own folder, beside that of the study whose job it is."""
MUTEX = ".lease.lock"
RENEWED_EVERY = 10.0
"""Seconds between two renewals."""
EXPIRES = 60.0
"""Seconds after the last renewal at which another host may take a lease over: six renewals, or a slow file system."""
PATIENCE = 10.0
"""Seconds to wait for the mutex; its holder does two small writes, unless it was stopped right there."""
ENDING = 20.0
"""Seconds to wait for a run on this host that may be saving on its way out, as after a signal."""


class Lease:
    """The right to work on a folder; made by ``take``.

    Args:
        folder: what is worked on.
        token: tells this lease from any other of the folder.
        file: name of the file, one for each kind of work.
    """

    def __init__(self, folder: Path, token: str, file: str = FILE) -> None:
        self.folder = folder
        self.token = token
        self.file = file

    @classmethod
    def take(cls, folder: Path, processes: Sequence[int] = (), file: str = FILE) -> Lease | None:
        """Take the lease of a folder, which is made if need be.

        Args:
            folder: what is to be worked on.
            processes: numbers of those that work on it, as long as one of which lives the lease does; with this one.
            file: name of the file, one for each kind of work.

        Returns:
            The lease, or None when another holds it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _mutex(folder) as alone:
            if not alone or is_live(folder, file):
                return None
            lease = cls(folder, uuid.uuid4().hex, file)
            pids = dict.fromkeys([os.getpid(), *processes])
            content = {"token": lease.token, "host": this_host(), "processes": [[pid, start_of(pid)] for pid in pids]}
            write_json(folder / file, content)
        return lease

    def renew(self) -> bool:
        """Say that the work goes on; False when the lease was lost, and the work has to stop."""
        if _read(self.folder, self.file).get("token") != self.token:
            return False
        try:
            os.utime(self.folder / self.file)  # without a time: the file system's own clock
        except FileNotFoundError:
            return False
        return True

    def release(self) -> None:
        """Give the folder back; nothing happens if another has taken it over."""
        if not self.folder.is_dir():
            return
        with _mutex(self.folder) as alone:
            # a mutex that is stuck changes nothing: the lease ends with this process
            if alone and _read(self.folder, self.file).get("token") == self.token:
                (self.folder / self.file).unlink(missing_ok=True)


class Renewal:
    """A thread that renews leases, however long the main thread is busy.

    Args:
        on_loss: called in that thread when another has taken a lease over.

    Attributes:
        lost: leases that another has taken over.
    """

    def __init__(self, on_loss: Callable[[Lease], None] | None = None) -> None:
        self.on_loss = on_loss
        self.lost: list[Lease] = []
        self._held: list[Lease] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="leases", daemon=True)

    def __enter__(self) -> Renewal:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def add(self, lease: Lease) -> None:
        """Renew it from now on."""
        self._held.append(lease)

    def remove(self, lease: Lease) -> None:
        """Renew it no more."""
        for leases in (self._held, self.lost):
            with suppress(ValueError):
                leases.remove(lease)

    def _renew(self) -> None:
        while not self._stop.wait(RENEWED_EVERY):
            for lease in list(self._held):
                with suppress(OSError):  # a file system that is away for a while; the lease may end meanwhile
                    if not lease.renew() and lease in self._held:
                        self.lost.append(lease)
                        self._held.remove(lease)
                        if self.on_loss is not None:
                            self.on_loss(lease)


# -------------------- a run's folder


@contextmanager
def only_writer(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keep every other run out of a run's folder; they would delete each other's files.

    Args:
        folder: of the run; made if need be.
        say: takes a line when another run has to be waited for.

    Raises:
        ValueError: another run writes there; named by its host and processes.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        lease = _take_soon(folder, say)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        warnings.warn(f"{error}; a second run in {folder} would not be noticed", stacklevel=3)
        yield
        return
    try:
        with Renewal(_leave) as renewal:
            renewal.add(lease)
            yield
    finally:
        lease.release()
        with suppress(OSError):
            (folder / MUTEX).unlink(missing_ok=True)  # whoever waits for it sees that it is no longer that file
            for path in made:
                path.rmdir()  # of a run that was refused before it wrote anything; any other is not empty


def wait_for_writer(folder: Path, say: Callable[[str], None]) -> None:
    """Wait for a run that is about to end, so that what it leaves is read whole; arguments as for ``only_writer``."""
    if is_live(folder, WRITER):
        _take_soon(folder, say).release()


def _take_soon(folder: Path, say: Callable[[str], None]) -> Lease:
    """Take the lease, waiting for one that is about to end."""
    begun, seen = time.monotonic(), None
    while (lease := Lease.take(folder, file=WRITER)) is None:
        holder = _read(folder, WRITER)
        elsewhere = holder.get("host") != this_host()
        renewed = _renewed(folder, WRITER)
        # one of another host lives if it is renewed while we look, and may be gone if it is not
        lives = elsewhere and seen is not None and renewed != seen
        if seen is None:
            say(f"{folder}: {_holder(holder)} writes there; waiting for it to end")
        seen = renewed
        if lives or time.monotonic() - begun > (EXPIRES + PATIENCE if elsewhere else ENDING):
            raise ValueError(
                f"{folder}: {_holder(holder)} writes there; expected one run in a folder: stop that one, wait for it, "
                "or choose another run.name"
            )
        time.sleep(0.2)
    return lease


def _holder(content: dict[str, Any]) -> str:
    numbers = ", ".join(str(pid) for pid, _ in content.get("processes", []))
    return f"process {numbers or '?'} on host {str(content.get('host', '?')).partition(' ')[0]}"


def _leave(lease: Lease) -> None:
    """This host was away for so long that another run has taken the folder over: not one more byte goes there."""
    print(f"error: {lease.folder}: taken over by {_holder(_read(lease.folder, lease.file))}; stopped", file=sys.stderr)
    os._exit(1)


# -------------------- reading


def is_live(folder: Path, file: str = FILE) -> bool:
    """Whether anybody works on the folder."""
    lease = _read(folder, file)
    if not lease:
        return False
    if lease["host"] == this_host():
        return any(start_of(pid) == start for pid, start in lease["processes"])
    renewed = _renewed(folder, file)
    return renewed is not None and _file_system_time(folder) - renewed < EXPIRES


def is_live_here(folder: Path) -> bool:
    """Whether anybody works on the folder on this host."""
    return _read(folder, FILE).get("host") == this_host() and is_live(folder)


def _renewed(folder: Path, file: str) -> float | None:
    try:
        return (folder / file).stat().st_mtime
    except FileNotFoundError:
        return None


def _read(folder: Path, file: str) -> dict[str, Any]:
    """What the lease says; one that is damaged, as by a crash of the host, binds nobody."""
    try:
        with open(f"{folder}/{file}", encoding="utf-8") as stream:
            content = json.load(stream)
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) and {"host", "processes", "token"} <= content.keys() else {}


def _file_system_time(folder: Path) -> float:
    """Now, by the clock that stamps the files of the folder."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # a reader's right to write may be missing
        return time.time()


# -------------------- mutex


@contextmanager
def _mutex(folder: Path) -> Iterator[bool]:
    """Yield whether this process is alone with the lease of the folder; False if another does not let go."""
    path = folder / MUTEX
    try:
        import fcntl
    except ImportError:  # Windows
        try:
            with FileLock(path, timeout=PATIENCE):
                yield True
        except Timeout:
            yield False
        return
    end = time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(descriptor, path):
                break
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                os.close(descriptor)
                raise OSError(error.errno, f"{path}: {error.strerror}; expected a file system with flock") from error
            if time.monotonic() > end:
                os.close(descriptor)
                yield False
                return
        os.close(descriptor)
        time.sleep(0.01)
    try:
        yield True
    finally:
        os.close(descriptor)


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one of that name; the folder may have been removed and made again meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
