"""The process in which generated code runs: ``python -I sandbox.py REQUEST_FD TOKEN_FD RESULT_FD REPORT_FD``.

The first process, which never runs foreign code, takes what the kernel grants of its own network, processes and
mounts, starts another, waits, and kills whatever is left. That one limits itself, gives up its rights, runs the
candidate and then the tests. Only after the tests it reads the token, which until then lies unread in a pipe, and
hands it on: a program that ends early, by whatever exit code, has not passed. (In a namespace of processes there is one
between the two: the first of a namespace is deaf to the signals of the limits, and all others end with it.)

It needs the standard library alone and imports nothing of the package. What it does not protect against: see run.py.
Numbers of system calls' flags are those of linux/sched.h, linux/mount.h and linux/prctl.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
import traceback
import types
from typing import Any

NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PROCESSES, NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
NO_ATIME, RELATIME = 1024, 1 << 21
SET_DEATH_SIGNAL, SET_NO_NEW_PRIVILEGES, SET_SUBREAPER = 1, 38, 36
MOUNT_FLAGS = {"nosuid": NO_SUID, "nodev": NO_DEV, "noexec": NO_EXEC, "noatime": NO_ATIME, "relatime": RELATIME}
# far from the users of a machine, and one for each run: RLIMIT_NPROC counts by user
FIRST_USER = 1_000_000_000
STARTS_PROGRAM = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "ctypes.dlopen",
    "ctypes.dlsym",
)
CHANGES_FILES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")

libc: Any = ctypes.CDLL(None, use_errno=True)


def supervise(request: dict[str, Any], token_fd: int, result_fd: int, report_fd: int) -> None:
    """Start the second process, wait for it, kill what is left, and report."""
    confined = isolate(request["limits"])
    if hasattr(libc, "prctl"):
        libc.prctl(SET_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if child == 0:
        os.close(report_fd)
        if "processes" in confined:
            die_with_parent()
            candidate = os.fork()
            if candidate:
                os._exit(shell_code(os.waitpid(candidate, 0)[1]))
        run(request, token_fd, result_fd, confined)
    os.close(token_fd)
    os.close(result_fd)
    status, timed_out = wait(child, request["limits"]["wall_seconds"])
    kill_descendants()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # the limit of the processor kills by the same signal as others do, a moment before its time is booked
    spent = used.ru_utime + used.ru_stime >= 0.9 * request["limits"]["cpu_seconds"]
    timed_out |= spent and shell_code(status) == 128 + signal.SIGKILL
    report = {"code": shell_code(status), "timed_out": timed_out, "confined": confined}
    os.write(report_fd, json.dumps(report).encode())


def isolate(limits: dict[str, int]) -> list[str]:
    """What the kernel grants: its own network and processes, and only the working directory writable."""
    if not hasattr(libc, "unshare"):
        return []
    if os.geteuid() != 0:
        user, group = os.geteuid(), os.getegid()
        if libc.unshare(NEW_USER) != 0:
            return []
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    flags = {"network": NEW_NETWORK, "processes": NEW_PROCESSES, "mounts": NEW_MOUNTS, "ipc": NEW_IPC}
    confined = [name for name, flag in flags.items() if libc.unshare(flag) == 0]
    if "mounts" in confined:
        confined.remove("mounts")
        if only_working_directory(limits):
            confined.append("files")
    return confined


def only_working_directory(limits: dict[str, int]) -> bool:
    """Every mount read-only, but for a new file system of limited size on the working directory."""
    if libc.mount(None, b"/", None, RECURSIVE | PRIVATE, None) != 0:
        return False
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    for fields in mounts:
        place = fields[4].encode().decode("unicode_escape").encode("latin-1")
        flags = sum(MOUNT_FLAGS.get(option, 0) for option in fields[5].split(","))
        if libc.mount(None, place, None, REMOUNT | BIND | READ_ONLY | flags, None) != 0 and os.path.isdir(place):
            return False
    if os.geteuid() == 0:
        uncover({sys.base_prefix, sys.prefix})
    options = f"size={limits['file_bytes']},nr_inodes={limits['n_files']},mode=777".encode()
    here = os.getcwd()
    if libc.mount(b"tmpfs", here.encode(), b"tmpfs", NO_SUID | NO_DEV, options) != 0:
        return False
    os.chdir(here)
    return True


def uncover(folders: set[str]) -> None:
    """Python's folders stay readable without root's rights: what hides them is covered, and they alone are put back."""
    hidden: dict[str, list[str]] = {}
    for folder in folders:
        path = os.path.realpath(folder)
        closed = [place for place in ancestors(path) if not os.stat(place).st_mode & 1]
        if closed and not os.getcwd().startswith(closed[-1] + "/"):
            hidden.setdefault(closed[-1], []).append(path)
    for place, paths in hidden.items():
        kept = [(path, os.open(path, os.O_PATH)) for path in paths]
        if libc.mount(b"tmpfs", place.encode(), b"tmpfs", NO_SUID | NO_DEV, b"mode=755") != 0:
            continue
        for path, fd in kept:
            os.makedirs(path, exist_ok=True)
            libc.mount(f"/proc/self/fd/{fd}".encode(), path.encode(), None, BIND, None)
            libc.mount(None, path.encode(), None, REMOUNT | BIND | READ_ONLY, None)
            os.close(fd)
        libc.mount(None, place.encode(), None, REMOUNT | BIND | READ_ONLY, None)


def ancestors(path: str) -> list[str]:
    """The folders above a path, from the nearest to the root."""
    found = [os.path.dirname(path)]
    while found[-1] != "/":
        found.append(os.path.dirname(found[-1]))
    return found


def wait(child: int, wall_seconds: float) -> tuple[int, bool]:
    """Exit status of the child, and whether it was killed for its time."""
    deadline = time.monotonic() + wall_seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status, False
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1], True


def shell_code(status: int) -> int:
    """Exit code, or 128 and the number of the signal, as a shell has it."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def die_with_parent() -> None:
    """No life without the process that started this one."""
    if hasattr(libc, "prctl"):
        libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def kill_descendants() -> None:
    """Kill orphans, which have become children of this process, until there are none; their number is limited.

    Without /proc (macOS) only those are killed that stay in the group of processes, by whoever started this one.
    """
    if not os.path.isdir("/proc"):
        return
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for entry in os.listdir("/proc"):
            if entry.isdigit() and parent(entry) == os.getpid():
                os.kill(int(entry), signal.SIGKILL)
        time.sleep(0.005)


def parent(process: str) -> int | None:
    """Id of the parent; None for a process that is gone."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


# -------------------- the process of the candidate


def run(request: dict[str, Any], token_fd: int, result_fd: int, confined: list[str]) -> None:
    """Run candidate and tests; never returns."""
    read, write, leave, streams = os.read, os.write, os._exit, (sys.stdout, sys.stderr)
    passed = False
    main = types.ModuleType("__main__")
    try:
        limit(request["limits"], confined)
        # compiled apart: an unfinished string or block of the candidate swallows no test
        parts = [compile(request[name], f"<{name}>", "exec") for name in ("candidate", "tests")]
        execute = exec
        sys.modules["__main__"] = main
        for name in ("ctypes", "_ctypes"):
            sys.modules.pop(name)
        forbid(os.getcwd())
        for part in parts:
            execute(part, main.__dict__)
        passed = True
    except BaseException:
        traceback.print_exc(limit=-8, file=streams[1])
    finally:
        for stream in streams:
            with contextlib.suppress(Exception):
                stream.flush()
        if passed:
            write(result_fd, read(token_fd, 64))
        leave(0 if passed else 1)


def limit(limits: dict[str, int], confined: list[str]) -> None:
    """Limits of this process and its children, no standard input, no rights."""
    # the old /proc shows the processes outside; where a new one is not allowed, nothing is shown
    own = "processes" in confined and "files" in confined
    if own and libc.mount(b"proc", b"/proc", b"proc", NO_SUID | NO_DEV | NO_EXEC, None) != 0:
        libc.mount(b"tmpfs", b"/proc", b"tmpfs", READ_ONLY, None)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if os.geteuid() == 0 and readable_by_all(os.__file__):
        user = FIRST_USER + time.time_ns() % 1_000_000_000
        if "files" not in confined:
            os.chown(os.getcwd(), user, user)
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    if sys.platform == "linux":
        drop_capabilities()
        libc.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    die_with_parent()
    for name, value in (
        ("RLIMIT_CPU", limits["cpu_seconds"]),
        ("RLIMIT_AS", limits["memory_bytes"]),
        ("RLIMIT_DATA", limits["memory_bytes"]),
        ("RLIMIT_FSIZE", limits["file_bytes"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_NPROC", limits["n_processes"]),
        ("RLIMIT_CORE", 0),
    ):
        if sys.platform == "linux" or name != "RLIMIT_AS":  # macOS refuses it
            resource.setrlimit(getattr(resource, name), (value, value))


def readable_by_all(path: str) -> bool:
    """Whether Python's library is still there for another user; it may lie in root's own folder."""
    return bool(os.stat(path).st_mode & 4) and all(os.stat(folder).st_mode & 1 for folder in ancestors(path))


def drop_capabilities() -> None:
    """None left, also none within a user namespace, where they would allow to mount again."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    libc.capset(header, (ctypes.c_uint32 * 6)())


def forbid(home: str) -> None:
    """A second line in the interpreter itself: no sockets, no other programs, no changes outside ``home``.

    Audit hooks cannot be removed, but native code goes around them.
    """
    home = os.path.realpath(home)
    # the kernel does not count the processes of root
    starts = (*STARTS_PROGRAM, "os.fork", "os.forkpty") if os.geteuid() == 0 else STARTS_PROGRAM
    real, inside, decode = os.path.realpath, os.path.commonpath, os.fsdecode

    def outside(path: Any) -> bool:
        return isinstance(path, (str, bytes)) and inside([home, real(decode(path))]) != home

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith("socket.") or event in starts:
            raise PermissionError(f"{event} is not allowed here")
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in CHANGES_FILES:
            # the second argument is the other path of renaming and linking, else a mode
            places = [path for path in arguments[:2] if path != os.devnull and outside(path)]
            if places:
                raise PermissionError(f"{event} outside of the working directory: {places[0]!r}")

    sys.addaudithook(hook)


if __name__ == "__main__":
    fds = [int(argument) for argument in sys.argv[1:5]]
    with os.fdopen(fds[0], "rb") as pipe:
        supervise(json.loads(pipe.read()), *fds[1:])
