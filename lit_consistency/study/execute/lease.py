"""Who works on a folder: a lease that only a living process holds, on one host or on several that share the folder.

``lease.json`` names the host, the processes and a token. It is taken, taken over and given back under a mutex
(``flock`` on ``.lease.lock``, held for milliseconds), which the kernel releases when its holder dies. A lease ends

- on its own host as soon as none of its processes lives, told apart from later ones of the same number by their start;
- for another host when it was not renewed for ``EXPIRES`` seconds. Times are those of the file system: every stamp is
  set by the server of the folder, so that clocks of hosts may differ.

On NFS ``flock`` locks all clients since Linux 2.6.12; a file system without it (Lustre mounted without ``-o flock``)
raises an ``OSError``, because two drivers could not be kept apart there. Given up: a host that is frozen for longer
than ``EXPIRES`` and wakes up may run a job beside the one that took it over, until its next renewal, which stops it.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lit_consistency.records.atomic import write_json

FILE = "lease.json"
MUTEX = ".lease.lock"
RENEWED_EVERY = 10.0
"""Seconds between two renewals."""
EXPIRES = 60.0
"""Seconds after the last renewal at which another host may take a lease over: six renewals, or a slow file system."""
PATIENCE = 10.0
"""Seconds to wait for the mutex; its holder does two small writes, unless it was stopped right there."""


class Lease:
    """The right to work on a folder; made by ``take``.

    Args:
        folder: what is worked on.
        token: tells this lease from any other of the folder.
    """

    def __init__(self, folder: Path, token: str) -> None:
        self.folder = folder
        self.token = token

    @classmethod
    def take(cls, folder: Path, processes: Sequence[int] = ()) -> Lease | None:
        """Take the lease of a folder, which is made if need be.

        Args:
            folder: what is to be worked on.
            processes: numbers of those that work on it, as long as one of which lives the lease does; with this one.

        Returns:
            The lease, or None when another holds it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _mutex(folder) as alone:
            if not alone or is_live(folder):
                return None
            lease = cls(folder, uuid.uuid4().hex)
            pids = dict.fromkeys([os.getpid(), *processes])
            content = {"token": lease.token, "host": this_host(), "processes": [[pid, start_of(pid)] for pid in pids]}
            write_json(folder / FILE, content)
        return lease

    def renew(self) -> bool:
        """Say that the work goes on; False when the lease was lost, and the work has to stop."""
        if _read(self.folder).get("token") != self.token:
            return False
        try:
            os.utime(self.folder / FILE)  # without a time: the file system's own clock
        except FileNotFoundError:
            return False
        return True

    def release(self) -> None:
        """Give the folder back; nothing happens if another has taken it over."""
        if not self.folder.is_dir():
            return
        with _mutex(self.folder) as alone:
            # a mutex that is stuck changes nothing: the lease ends with this process
            if alone and _read(self.folder).get("token") == self.token:
                (self.folder / FILE).unlink(missing_ok=True)


class Renewal:
    """A thread that renews leases, however long the main thread is busy.

    Attributes:
        lost: leases that another has taken over.
    """

    def __init__(self) -> None:
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


# -------------------- reading


def is_live(folder: Path) -> bool:
    """Whether anybody works on the folder."""
    lease = _read(folder)
    if not lease:
        return False
    if lease["host"] == this_host():
        return any(start_of(pid) == start for pid, start in lease["processes"])
    try:
        renewed = (folder / FILE).stat().st_mtime
    except FileNotFoundError:
        return False
    return _file_system_time(folder) - renewed < EXPIRES


def is_live_here(folder: Path) -> bool:
    """Whether anybody works on the folder on this host."""
    return _read(folder).get("host") == this_host() and is_live(folder)


def this_host() -> str:
    """Name, start of the system and namespace of processes: where a process number means what it means here."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # containers of one host count their processes apart
    return " ".join(parts)


def _read(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def start_of(pid: int) -> str | None:
    """When a process started, in words that no later process of this number has; None if it is dead."""
    try:
        # the name, in parentheses, may hold anything; then: state, parent, ..., the start as the 20th (proc(5))
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _answers(pid)
    return None if fields[0] in "ZX" else fields[19]


def _answers(pid: int) -> str | None:
    """Whether a process of this number lives, where there is no /proc to tell it from another."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


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
    import fcntl  # not on Windows, where no study is executed

    path = folder / MUTEX
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
