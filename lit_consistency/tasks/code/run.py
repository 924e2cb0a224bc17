"""Pass@k: generated programs and their tests, run in a process of their own. Only when allowed, and behind walls.

Walls: no network, no process but its own, no file but Python's, which are read-only, and an empty working folder; the
home folder, /run with its sockets and /tmp are not there. bubblewrap builds them where it is installed; without it, and
for root, sandbox.py does, as far as the kernel grants namespaces. Where one of these walls or another user than root
cannot be had, nothing is run, unless ``allow_unconfined_code`` is given too. ``CodeResult.confined`` says what stood.

Limits: processor time, wall time, memory of each process and of all together (a cgroup of version 2 where one may be
made, else sampled), size and number of files, number of processes; no standard input, no environment; output is cut. A
second line, inside of Python, refuses sockets, other programs and writing elsewhere: it stops mistakes, not intent.

What it does not protect against: flaws of the kernel; memory taken between two samples, or held in files of memory
alone; without walls, anything that the user may do. Nor does it judge honesty: a candidate that looks for the token in
its own process, or returns an object that equals everything, passes. For code from a stranger's model use a virtual
machine around the whole run.

Source of the idea: Chen et al. 2021, arXiv 2107.03374, section 2.3; github.com/openai/human-eval, execution.py, which
replaces functions of the interpreter and warns itself that this is no sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

# starting Python and killing what is left, beyond the wall time of the program
GRACE_SECONDS = 10
SANDBOX = Path(__file__).with_name("sandbox.py")
CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
NEEDED = ("network", "files", "processes", "user")
"""Walls without which nothing runs; "user" is another user than root."""
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives"),
    *("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"),
)
"""What programs see of the machine besides Python, where it is there."""


class Limits(NamedTuple):
    """What a program may use.

    Attributes:
        wall_seconds: from its start.
        cpu_seconds: of one process.
        memory_bytes: address space of one process, and memory of all together.
        file_bytes: of one file, and of all together behind walls.
        n_files: in the working folder, behind walls of sandbox.py.
        n_processes: of its user, with threads.
        output_bytes: kept of what it writes to its standard streams.
    """

    wall_seconds: float = 10.0
    cpu_seconds: int = 5
    memory_bytes: int = 1 << 30
    file_bytes: int = 16 << 20
    n_files: int = 256
    n_processes: int = 16
    output_bytes: int = 10_000


class CodeResult(NamedTuple):
    """How a program ended.

    Attributes:
        passed: all tests ran and none failed.
        reason: "passed", "failed" (an exception), "exited" (before the end of the tests), "timeout", "memory" (of all
            its processes), "killed by" a signal, or "no report" (the first process of the sandbox itself was killed, or
            took too long).
        output: beginning of its standard output and error.
        confined: what stood: "network", "processes", "files", "ipc", "user", "memory" or "memory sampled", and before
            them who built the walls.
    """

    passed: bool
    reason: str
    output: str
    confined: tuple[str, ...]


def humaneval_tests(test: str, entry_point: str) -> str:
    """Tests of a HumanEval problem: its ``check`` function, and the call with the function that was asked for."""
    return f"{test}\n\ncheck({entry_point})\n"


def run_tests(
    candidate: str, tests: str, *, needed: Sequence[str] = NEEDED, limits: Limits | None = None
) -> CodeResult:
    """Run a candidate program and then its tests, in the same namespace.

    Args:
        candidate: the whole program; of HumanEval the prompt and the completion.
        tests: statements that raise where the candidate is wrong.
        needed: walls without which it does not run, see ``needed_walls``.
        limits: see ``Limits``.

    Raises:
        RuntimeError: a wall that is needed does not stand, or root cannot be given up; nothing has run.
    """
    return _run(candidate, tests, walls()[0], needed, limits or Limits())


def run_many(
    programs: Sequence[tuple[str, str]],
    *,
    needed: Sequence[str] = NEEDED,
    limits: Limits | None = None,
    n_parallel: int = 1,
) -> list[CodeResult]:
    """As ``run_tests`` for pairs of candidate and tests, ``n_parallel`` at a time."""
    walls()  # tried once, before the threads begin
    with ThreadPoolExecutor(n_parallel) as pool:
        return list(pool.map(lambda pair: run_tests(*pair, needed=needed, limits=limits), programs))


def needed_walls(allow_code_execution: bool, allow_unconfined_code: bool) -> tuple[str, ...]:
    """What must stand around the programs of a model, by the user's word.

    Args:
        allow_code_execution: generated code may run on this machine.
        allow_unconfined_code: also without walls.

    Returns:
        Names of walls, of which all stand here.

    Raises:
        ValueError: it may not run, or walls are missing; names the options.
    """
    if not allow_code_execution:
        after = ", after reading what lit_consistency/tasks/code/run.py protects against"
        beside = "allow_unconfined_code = true: " if allow_unconfined_code else ""
        raise ValueError(
            f"{beside}allow_code_execution = false: this task runs programs that the model wrote, on this machine; "
            f"expected --allow_code_execution{after}"
        )
    if os.name != "posix":
        raise ValueError(f"running generated code needs the limits of Linux or macOS, this is {sys.platform}")
    if allow_unconfined_code:
        return ()
    _, confined, why = walls()
    if missing := [name for name in NEEDED if name not in confined]:
        raise ValueError(
            f"allow_code_execution = true, but no walls can be built around programs that the model wrote: "
            f"{', '.join(missing)} missing{f' ({why})' if why else ''}; expected bubblewrap (bwrap) or user "
            "namespaces, or --allow_unconfined_code too, with which they may do whatever this user may: give it in a "
            "container or virtual machine that holds nothing else"
        )
    return NEEDED


def confinement(results: Sequence[CodeResult]) -> str:
    """In words, for the terminal and the results: what stood around all programs."""
    # one that killed its sandbox leaves no word of its walls
    told = [set(result.confined) for result in results if result.confined]
    walls = set.intersection(*told) if told else set()
    builder = next((name for name in ("bubblewrap", "namespaces") if name in walls), None)
    kept = [name for name in ("network", "files", "processes", "ipc", "user") if name in walls]
    memory = "memory of all processes limited" if "memory" in walls else "memory of all processes sampled, no cgroup"
    if not set(NEEDED) <= walls:
        return f"programs ran UNCONFINED (of the walls stood: {', '.join(kept) or 'none'})"
    return f"programs ran confined by {builder}: {', '.join(kept)}; {memory}"


@cache
def walls() -> tuple[str, tuple[str, ...], str]:
    """Who builds walls here, which of them stood around an empty program, and what was said of the others."""
    # bubblewrap needs no namespaces of the user's where it is setuid; started by root, it would leave its programs root
    ways = ["bubblewrap"] if shutil.which("bwrap") and os.geteuid() != 0 else []
    said = ""
    for way in (*ways, "namespaces"):
        try:
            result = _run("", "", way, (), Limits())
        except RuntimeError as error:
            said = str(error)
            continue
        if set(NEEDED) <= set(result.confined):
            return way, result.confined, ""
        said = result.output.strip()
    return "namespaces", (), said


def _run(candidate: str, tests: str, way: str, needed: Sequence[str], limits: Limits) -> CodeResult:
    with (
        tempfile.TemporaryDirectory(prefix="lit_consistency-", ignore_cleanup_errors=True) as folder,
        _memory_group(limits) as group,
    ):
        request = {"candidate": candidate, "tests": tests, "limits": limits._asdict(), "needed": list(needed)}
        request |= {"granted": [], "visible": _visible()}
        command: list[str] = []
        if way == "bubblewrap":
            command = _bubblewrap(Path(folder), limits)
            request["granted"] = ["network", "processes", "files", "ipc"]
        texts, token, grouped = _communicate(command, json.dumps(request).encode(), Path(folder), group, limits)
    result = _judge(texts, token)
    if not result.confined:
        return result
    confined = ["memory" if name == "memory sampled" and grouped else name for name in result.confined]
    return result._replace(confined=(way, *confined))


def _communicate(
    command: list[str], request: bytes, folder: Path, group: Path | None, limits: Limits
) -> tuple[dict[str, bytes], str, bool]:
    """What comes back by name, the token that is handed on where all tests have run, and whether a cgroup holds it."""
    token = secrets.token_hex(16)
    request_out, token_out, result_in, report_in = (os.pipe() for _ in range(4))
    theirs = [request_out[0], token_out[0], result_in[1], report_in[1]]
    try:
        process = subprocess.Popen(
            [*command, sys.executable, "-I", str(SANDBOX), *map(str, theirs)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"LC_ALL": "C.UTF-8", "HOME": str(folder), "TMPDIR": str(folder)},
            pass_fds=theirs,
            start_new_session=True,
        )
    finally:
        for fd in theirs:
            os.close(fd)
    assert process.stdout is not None
    grouped = False
    try:
        # before it reads the request, and starts another
        with contextlib.suppress(OSError):  # a group may be made where no process may be moved to
            grouped = group is not None and bool(
                (group / "cgroup.procs").write_text(str(process.pid), encoding="ascii")
            )
        with contextlib.suppress(BrokenPipeError):
            os.write(token_out[1], token.encode())
        os.close(token_out[1])
        with contextlib.suppress(BrokenPipeError), os.fdopen(request_out[1], "wb") as pipe:
            pipe.write(request)
        texts = _read({"output": process.stdout.fileno(), "result": result_in[0], "report": report_in[0]}, limits)
        return texts, token, grouped
    finally:
        # the group holds the first process; the second dies with it, and all within its namespace
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        os.close(result_in[0])
        os.close(report_in[0])


def _visible() -> list[str]:
    """Folders and files that a program may read: the system's and Python's, the upper ones first."""
    home = Path.home()
    python = {sys.prefix, sys.base_prefix, os.path.realpath(sys.base_prefix)}
    # Python that lies right in the home folder would show all of it
    paths = [path for path in (*SYSTEM, *python) if os.path.exists(path) and not home.is_relative_to(path)]
    return [
        path for path in sorted(paths) if not any(Path(path).is_relative_to(other) and path != other for other in paths)
    ]


def _bubblewrap(folder: Path, limits: Limits) -> list[str]:
    """The command before the command; see bwrap(1). The root folder is one of memory too, so it is made read-only."""
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--proc", "/proc"]
    for path in _visible():
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--dev-bind" if path.startswith("/dev/") else "--ro-bind", path, path]
    command += ["--ro-bind", str(SANDBOX), str(SANDBOX), "--size", str(limits.file_bytes), "--tmpfs", str(folder)]
    return [*command, "--remount-ro", "/", "--chdir", str(folder), "--"]


@contextlib.contextmanager
def _memory_group(limits: Limits) -> Iterator[Path | None]:
    """A cgroup of version 2 beside that of this process; None where there is none with limits, or none may be made."""
    group = None
    try:
        own = next(line[4:] for line in CGROUP.read_text(encoding="ascii").splitlines() if line.startswith("0::/"))
        group = (CGROUPS / own).parent / f"lit_consistency-{secrets.token_hex(8)}"
        group.mkdir()
        (group / "memory.max").write_text(str(limits.memory_bytes), encoding="ascii")
        (group / "memory.swap.max").write_text("0", encoding="ascii")
    except (OSError, StopIteration):
        if group is not None and group.is_dir():
            group.rmdir()
        group = None
    try:
        yield group
    finally:
        deadline = time.monotonic() + 2  # what was killed leaves a moment later
        while group is not None and group.is_dir() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                group.rmdir()


def _read(fds: dict[str, int], limits: Limits) -> dict[str, bytes]:
    """What comes through the pipes until the first process reports; of the output, the beginning."""
    texts = dict.fromkeys(fds, b"")
    deadline = time.monotonic() + limits.wall_seconds + GRACE_SECONDS
    with selectors.DefaultSelector() as selector:
        for name, fd in fds.items():
            selector.register(fd, selectors.EVENT_READ, name)
        while (left := deadline - time.monotonic()) > 0 and "report" in {k.data for k in selector.get_map().values()}:
            for key, _ in selector.select(left):
                part = os.read(key.fd, 1 << 16)
                if not part:
                    selector.unregister(key.fd)
                texts[key.data] = (texts[key.data] + part)[: max(limits.output_bytes, 1000)]
        # what was written before the report lies in the pipes
        for key in list(selector.get_map().values()):
            os.set_blocking(key.fd, False)
            with contextlib.suppress(BlockingIOError):
                texts[key.data] = (texts[key.data] + os.read(key.fd, 1 << 16))[: max(limits.output_bytes, 1000)]
    return texts


def _judge(texts: dict[str, bytes], token: str) -> CodeResult:
    output = texts["output"].decode(errors="replace")
    if not texts["report"]:
        return CodeResult(False, "no report", output, ())
    report = json.loads(texts["report"])
    code, confined = report["code"], tuple(report["confined"])
    if report["error"]:
        raise RuntimeError(f"{report['error']} {output}".strip())
    if report["ended_by"]:
        return CodeResult(False, report["ended_by"], output, confined)
    if texts["result"] == token.encode():
        return CodeResult(True, "passed", output, confined)
    if code > 128 and code - 128 in set(signal.Signals):
        return CodeResult(False, f"killed by {signal.Signals(code - 128).name}", output, confined)
    return CodeResult(False, "failed" if code == 1 else "exited", output, confined)
