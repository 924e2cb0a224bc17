"""The process in which generated code runs: ``python -I sandbox.py REQUEST_FD TOKEN_FD RESULT_FD REPORT_FD``.

The first process, which never runs foreign code, takes what the kernel grants of its own network, processes and files,
starts another, watches time and memory, kills whatever is left, and reports. (Started by bubblewrap, it has its walls
already.) The other limits itself, gives up its rights, says so, runs the candidate and then the tests. Only after the
tests it reads the token, which until then lies unread in a pipe, and hands it on: a program that ends early, by
whatever exit code, has not passed. (In a namespace of processes there is one between the two: the first of a namespace
is deaf to the signals of the limits, and all others end with it.)

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
NO_ATIME, RELATIME, DETACH = 1024, 1 << 21, 2
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
    die_with_parent()
    confined = request["granted"] or isolate()
    if hasattr(libc, "prctl"):
        libc.prctl(SET_SUBREAPER, 1, 0, 0, 0)
    ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(report_fd)
        if not request["granted"]:
            confined = hide_files(confined, request)
        if "processes" in confined and not request["granted"]:
            die_with_parent()
            candidate = os.fork()
            if candidate:
                for fd in (token_fd, result_fd, *ready):
                    os.close(fd)
                os._exit(shell_code(os.waitpid(candidate, 0)[1]))
        run(request, token_fd, result_fd, ready[1], confined)
    for fd in (token_fd, result_fd, ready[1]):
        os.close(fd)
    with os.fdopen(ready[0]) as pipe:  # what it has reached, before foreign code runs
        report = json.loads(pipe.read() or '{"error": "the sandbox could not be set up", "confined": []}')
    # all that /proc shows are ours, where it is of our own namespace
    everything = "processes" in report["confined"] and "files" in report["confined"]
    code, ended_by = wait(child, request["limits"], everything)
    kill_descendants()
    ended_by = "timeout" if code == 128 + signal.SIGXCPU else ended_by
    os.write(report_fd, json.dumps({**report, "code": code, "ended_by": ended_by}).encode())


# -------------------- walls


def isolate() -> list[str]:
    """What the kernel grants: its own network, ipc, mounts, and, for the processes it starts, its own processes."""
    if not hasattr(libc, "unshare"):
        return []
    user, group = os.geteuid(), os.getegid()
    if user != 0:
        if libc.unshare(NEW_USER) != 0:
            return []
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    flags = {"network": NEW_NETWORK, "processes": NEW_PROCESSES, "mounts": NEW_MOUNTS, "ipc": NEW_IPC}
    return [name for name, flag in flags.items() if libc.unshare(flag) == 0]


def hide_files(confined: list[str], request: dict[str, Any]) -> list[str]:
    """The walls, with "files" in place of "mounts" where a root folder of its own could be made of them."""
    if "mounts" not in confined:
        return confined
    others = [name for name in confined if name != "mounts"]
    try:
        new_root(request["visible"], request["limits"], "processes" in confined)
    except OSError as error:
        print(f"no root folder of its own: {error}", file=sys.stderr)
        return others
    return [*others, "files"]


def new_root(visible: list[str], limits: dict[str, int], own_processes: bool) -> None:
    """Nothing is left but the folders in ``visible``, which are read-only, and the working directory, empty and small.

    Home folder, /run with its sockets and /tmp are not there. It is called by the first process of a namespace of
    processes: a new /proc shows that one's, and is granted only while the old one is still there.
    """
    here, top = os.getcwd(), os.getcwd() + "/root"
    os.mkdir(top)
    mount(None, "/", None, RECURSIVE | PRIVATE)
    mount("tmpfs", top, "tmpfs", NO_SUID | NO_DEV, "size=1m,mode=755")
    for path in visible:
        place = top + path
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), place)
            continue
        if os.path.isdir(path):
            os.makedirs(place, exist_ok=True)
        else:
            os.close(os.open(place, os.O_CREAT))
        mount(path, place, None, BIND | RECURSIVE)
    os.makedirs(top + "/proc", exist_ok=True)
    if own_processes:
        with contextlib.suppress(OSError):  # a container may forbid it; then nothing is shown
            mount("proc", top + "/proc", "proc", NO_SUID | NO_DEV | NO_EXEC)
    os.makedirs(top + here)
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    for fields in mounts:
        place = fields[4].encode().decode("unicode_escape").encode("latin-1").decode(errors="surrogateescape")
        if place.startswith(top):
            flags = sum(MOUNT_FLAGS.get(option, 0) for option in fields[5].split(","))
            mount(None, place, None, REMOUNT | BIND | READ_ONLY | flags)
    options = f"size={limits['file_bytes']},nr_inodes={limits['n_files']},mode=777"
    mount("tmpfs", top + here, "tmpfs", NO_SUID | NO_DEV, options)
    os.chdir(top)
    if libc.pivot_root(b".", b".") or libc.umount2(b".", DETACH):  # the old root lay over the new one for a moment
        raise OSError(ctypes.get_errno(), "pivot_root")
    os.chdir(here)


def mount(source: str | None, place: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Call the kernel; OSError where it refuses."""
    texts = [os.fsencode(text) if text is not None else None for text in (source, place, kind, options)]
    if libc.mount(*texts[:3], flags, texts[3]) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), place)


# -------------------- watching


def wait(child: int, limits: dict[str, float], everything: bool) -> tuple[int, str]:
    """Exit code of the child, and what it was killed for: "timeout", "memory", or nothing."""
    deadline = time.monotonic() + limits["wall_seconds"]
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return shell_code(status), ""
        if sum(map(memory, group(everything))) > limits["memory_bytes"]:
            break
        time.sleep(0.01)
    ended_by = "timeout" if time.monotonic() >= deadline else "memory"
    os.kill(child, signal.SIGKILL)
    return shell_code(os.waitpid(child, 0)[1]), ended_by


def group(everything: bool) -> list[str]:
    """Processes of the candidate: those in /proc, or those in it that descend from this one."""
    parents = (
        {entry: parent(entry) for entry in os.listdir("/proc") if entry.isdigit()} if os.path.isdir("/proc") else {}
    )
    if everything:
        return list(parents)
    ours = {os.getpid()}
    while more := {int(child) for child, above in parents.items() if above in ours} - ours:
        ours |= more
    return [str(process) for process in ours - {os.getpid()}]


def memory(process: str) -> int:
    """Bytes in use, of those that are shared its part; 0 for a process that is gone."""
    try:
        with open(f"/proc/{process}/smaps_rollup") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


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
    deadline = time.monotonic() + 2
    while os.path.isdir("/proc") and time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for process in group(everything=False):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        time.sleep(0.005)


def parent(process: str) -> int | None:
    """Id of the parent; None for a process that is gone."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


# -------------------- the process of the candidate


def run(request: dict[str, Any], token_fd: int, result_fd: int, ready_fd: int, confined: list[str]) -> None:
    """Run candidate and tests where all walls that are needed stand; never returns."""
    read, write, leave, streams = os.read, os.write, os._exit, (sys.stdout, sys.stderr)
    passed = False
    main = types.ModuleType("__main__")
    reached: dict[str, Any] = {"error": "", "confined": confined}
    try:
        reached["confined"] = limit(request["limits"], confined)
        if missing := [name for name in request["needed"] if name not in reached["confined"]]:
            reached["error"] = f"not confined: {', '.join(missing)}"
    except OSError as error:
        reached["error"] = str(error)
    write(ready_fd, json.dumps(reached).encode())
    os.close(ready_fd)
    if reached["error"]:
        leave(1)
    try:
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


def limit(limits: dict[str, int], confined: list[str]) -> list[str]:
    """Limits of this process and its children, no standard input, no rights.

    Returns:
        The walls that stand, with "user": this is not root any more.

    Raises:
        OSError: root cannot be given up, or a limit is not granted.
    """
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if os.geteuid() == 0:
        user = FIRST_USER + time.time_ns() % 1_000_000_000
        if "files" not in confined:
            os.chown(os.getcwd(), user, user)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        open(os.__file__).close()  # Python's library may lie in a folder of root alone
    if sys.platform == "linux":
        # none left, also none within a user namespace, where they would allow to mount again
        libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
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
        # the soft limit of the processor has a signal of its own; who ignores it is killed a second later
        most = value + 1 if name == "RLIMIT_CPU" else value
        if sys.platform == "linux" or name != "RLIMIT_AS":  # macOS refuses it
            resource.setrlimit(getattr(resource, name), (value, most))
    # the first process samples it, where it sees the others
    return [*confined, "user", *(["memory sampled"] if os.path.exists("/proc/meminfo") else [])]


def forbid(home: str) -> None:
    """A second line in the interpreter itself: no sockets, no other programs, no changes outside ``home``.

    It stops what a program does by mistake, not who means it: audit hooks cannot be removed, but are gone around.
    """
    home = os.path.realpath(home)
    real, inside, decode = os.path.realpath, os.path.commonpath, os.fsdecode

    def outside(path: Any) -> bool:
        return isinstance(path, (str, bytes)) and inside([home, real(decode(path))]) != home

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith("socket.") or event in STARTS_PROGRAM:
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
