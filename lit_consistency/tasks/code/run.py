"""Pass@k: generated programs and their tests, run in a process of their own. Only when allowed.

Limits on processor time, wall time, memory, size and number of files, and number of processes; no standard input, no
environment, an empty working directory that is removed; output is cut. On Linux the process has no network, sees no
process outside and can write nowhere but in its working directory, as far as the kernel grants it (to root, or where
user namespaces are allowed); run as root, it gives up root. ``CodeResult.confined`` says what was granted. A second
line, inside of Python, refuses sockets, other programs and writing elsewhere.

What it does not protect against: flaws of the kernel; reading files that any user of the machine may read; where
nothing is granted, native code that goes around Python, and programs that fill the disk with many small files. Nor does
it judge honesty: a candidate that looks for the token in its own process, or returns an object that equals everything,
passes. For code from a stranger's model use a container or a virtual machine around the whole run.

Source of the idea: Chen et al. 2021, arXiv 2107.03374, section 2.3; github.com/openai/human-eval, execution.py, which
replaces functions of the interpreter and warns itself that this is no sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

# starting Python and killing what is left, beyond the wall time of the program
GRACE_SECONDS = 10
SANDBOX = Path(__file__).with_name("sandbox.py")


class Limits(NamedTuple):
    """What a program may use.

    Attributes:
        wall_seconds: from its start.
        cpu_seconds: of one process.
        memory_bytes: address space of one process.
        file_bytes: of one file, and of all together where the working directory is a file system of its own.
        n_files: in the working directory, where it is a file system of its own.
        n_processes: of its user, with threads; not enforced for root.
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
        reason: "passed", "failed" (an exception), "exited" (before the end of the tests), "timeout", "killed by" a
            signal, or "no report" (the first process of the sandbox itself was killed, or took too long).
        output: beginning of its standard output and error.
        confined: what the kernel granted: "network", "processes", "files", "ipc".
    """

    passed: bool
    reason: str
    output: str
    confined: tuple[str, ...]


def humaneval_tests(test: str, entry_point: str) -> str:
    """Tests of a HumanEval problem: its ``check`` function, and the call with the function that was asked for."""
    return f"{test}\n\ncheck({entry_point})\n"


def run_tests(candidate: str, tests: str, *, allow_code_execution: bool, limits: Limits | None = None) -> CodeResult:
    """Run a candidate program and then its tests, in the same namespace.

    Args:
        candidate: the whole program; of HumanEval the prompt and the completion.
        tests: statements that raise where the candidate is wrong.
        allow_code_execution: the user's word that generated code may run on this machine.
        limits: see ``Limits``.

    Raises:
        ValueError: not allowed.
        RuntimeError: the system has no such limits (Windows).
    """
    check_allowed(allow_code_execution)
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="lit_consistency-", ignore_cleanup_errors=True) as folder:
        return _run(candidate, tests, limits, Path(folder))


def run_many(
    programs: Sequence[tuple[str, str]],
    *,
    allow_code_execution: bool,
    limits: Limits | None = None,
    n_parallel: int = 1,
) -> list[CodeResult]:
    """As ``run_tests`` for pairs of candidate and tests, ``n_parallel`` at a time."""
    check_allowed(allow_code_execution)
    with ThreadPoolExecutor(n_parallel) as pool:
        return list(
            pool.map(lambda pair: run_tests(*pair, allow_code_execution=allow_code_execution, limits=limits), programs)
        )


def check_allowed(allow_code_execution: bool) -> None:
    """Refuse to run generated code unasked.

    Raises:
        ValueError: not allowed.
        RuntimeError: the system has no such limits (Windows).
    """
    if not allow_code_execution:
        raise ValueError(
            "allow_code_execution = false: this task runs programs that the model wrote, on this machine; "
            "expected --allow_code_execution, after reading what lit_consistency/tasks/code/run.py protects against"
        )
    if os.name != "posix":
        raise RuntimeError(f"running generated code needs the limits of Linux or macOS, this is {sys.platform}")


def _run(candidate: str, tests: str, limits: Limits, folder: Path) -> CodeResult:
    token = secrets.token_hex(16)
    request = json.dumps({"candidate": candidate, "tests": tests, "limits": limits._asdict()}).encode()
    request_out, token_out, result_in, report_in = (os.pipe() for _ in range(4))
    theirs = [request_out[0], token_out[0], result_in[1], report_in[1]]
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", str(SANDBOX), *map(str, theirs)],
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
    os.write(token_out[1], token.encode())
    os.close(token_out[1])
    try:
        with contextlib.suppress(BrokenPipeError), os.fdopen(request_out[1], "wb") as pipe:
            pipe.write(request)
        assert process.stdout is not None
        texts = _read({"output": process.stdout.fileno(), "result": result_in[0], "report": report_in[0]}, limits)
    finally:
        # the group holds the first process; the second dies with it, and all within its namespace
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        os.close(result_in[0])
        os.close(report_in[0])
    return _judge(texts, token)


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
    if report["timed_out"]:
        return CodeResult(False, "timeout", output, confined)
    if texts["result"] == token.encode():
        return CodeResult(True, "passed", output, confined)
    if code > 128 and code - 128 in set(signal.Signals):
        return CodeResult(False, f"killed by {signal.Signals(code - 128).name}", output, confined)
    return CodeResult(False, "failed" if code == 1 else "exited", output, confined)
