"""Generated programs are run, and held in; the limits here are small, so that a hole in them does no harm."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from lit_consistency.tasks.code import run as code
from lit_consistency.tasks.code.run import CodeResult, Limits, humaneval_tests, run_many, run_tests

LIMITS = Limits(wall_seconds=5.0, cpu_seconds=2, memory_bytes=1 << 28, file_bytes=1 << 20, n_files=32, n_processes=8)
RIGHT = "def double(x):\n    return 2 * x\n"
TEST = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n"
TESTS = humaneval_tests(TEST, "double")


def run(extra: str = "", tests: str = TESTS, **limits: float) -> CodeResult:
    return run_tests(RIGHT + extra, tests, allow_code_execution=True, limits=LIMITS._replace(**limits))


@pytest.fixture(params=["what the kernel grants", "nothing"])
def granted(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The sandbox as it is, and one to which the kernel grants no namespace."""
    if request.param == "nothing":
        source, start = code.SANDBOX.read_text(), 'if __name__ == "__main__":'
        assert source.count(start) == 1
        without = tmp_path / "sandbox.py"
        without.write_text(source.replace(start, "isolate = lambda limits: []\n\n" + start))
        monkeypatch.setattr(code, "SANDBOX", without)
    return request.param


def test_without_namespaces_the_result_says_so(granted: str) -> None:
    found = run()
    assert found.passed
    assert not (granted == "nothing" and found.confined)


def test_it_runs_only_when_allowed() -> None:
    with pytest.raises(ValueError, match="--allow_code_execution"):
        run_tests(RIGHT, TESTS, allow_code_execution=False)
    with pytest.raises(ValueError, match="--allow_code_execution"):
        run_many([(RIGHT, TESTS)], allow_code_execution=False)


def test_right_passes_and_wrong_fails_with_its_error() -> None:
    right, wrong = run_many(
        [(RIGHT, TESTS), ("def double(x):\n    return x * x\n", TESTS)], allow_code_execution=True, n_parallel=2
    )
    assert (right.passed, right.reason) == (True, "passed")
    assert (wrong.passed, wrong.reason) == (False, "failed")
    assert "AssertionError" in wrong.output


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("import sys\nsys.exit(0)", "failed"),
        ("raise SystemExit(0)", "failed"),
        ("import os\nos._exit(0)", "exited"),
        ("print('passed')\nimport os\nos._exit(0)", "exited"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)", "killed by SIGTERM"),
        ("import threading, os\nthreading.Timer(0, os._exit, (0,)).start()\nimport time\ntime.sleep(1)", "exited"),
        ("import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'0' * 32)\n    except OSError: pass", "failed"),
    ],
)
def test_a_program_that_ends_before_its_tests_has_not_passed(extra: str, reason: str, granted: str) -> None:
    wrong = "def double(x):\n    return 0\n" + extra
    found = run_tests(wrong, TESTS, allow_code_execution=True, limits=LIMITS)
    assert (found.passed, found.reason) == (False, reason)


def test_replacing_the_checker_and_the_interpreter_s_functions_does_not_pass() -> None:
    wrong = """
import builtins, json, os, sys
def double(x): return 0
def check(candidate): pass
class Quiet(Exception): pass
builtins.AssertionError = Quiet
builtins.compile = lambda *a: "pass"
builtins.exec = lambda *a: None
sys.excepthook = lambda *a: None
os.write = os.read = lambda *a: b""
os._exit = lambda code: None
"""
    assert not run_tests(wrong, TESTS, allow_code_execution=True, limits=LIMITS).passed


def test_an_unfinished_string_swallows_no_test() -> None:
    assert not run("text = '''", "x = ''''''\n").passed
    assert not run("if False:\n    pass\n\\", TESTS.replace("4", "5")).passed


def test_an_endless_loop_ends_with_its_processor_time() -> None:
    began = time.monotonic()
    found = run("while True: pass", cpu_seconds=1, wall_seconds=30)
    assert (found.passed, found.reason) == (False, "timeout")
    assert time.monotonic() - began < 25


def test_waiting_ends_with_the_wall_time() -> None:
    assert run("import time\ntime.sleep(60)", wall_seconds=0.5).reason == "timeout"


def test_memory_is_limited() -> None:
    found = run("block = bytearray(1 << 32)")
    assert not found.passed
    assert "MemoryError" in found.output


def test_processes_are_limited_and_none_is_left_behind(granted: str) -> None:
    """At most 50 forks, were there no limit; the children leave their session and would sleep on."""
    found = run(
        "import os, time\nn = 0\ntry:\n    for n in range(50):\n        if os.fork() == 0:\n            os.setsid()\n"
        "            time.sleep(30)\n            os._exit(0)\nexcept OSError:\n    print('stopped', n)"
    )
    assert found.passed
    stopped, n = found.output.split()
    assert stopped == "stopped"
    assert int(n) < LIMITS.n_processes
    left = [name for name in os.listdir("/proc") if name.isdigit() and b"sandbox.py" in command(name)]
    assert not left


def command(process: str) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    "attempt",
    [
        "open(PLACE, 'w').write('x')",
        "import os\nos.close(os.open(PLACE, os.O_WRONLY | os.O_CREAT))",
        "import pathlib\npathlib.Path(PLACE).mkdir()",
        "import os\nos.rename('inside', PLACE)",
        "import os\nos.system('touch ' + PLACE)",
        "import subprocess\nsubprocess.run(['touch', PLACE])",
    ],
)
def test_nothing_is_written_outside_of_the_working_directory(attempt: str, granted: str) -> None:
    place = Path(tempfile.gettempdir()) / f"lit_consistency-outside-{os.getpid()}"
    found = run(f"open('inside', 'w').write('x')\nPLACE = {str(place)!r}\n{attempt}\n")
    assert not place.exists()
    assert not found.passed


def test_files_in_the_working_directory_are_limited_and_removed() -> None:
    found = run("import os\nopen('small', 'w').write('x')\nprint(os.getcwd(), os.listdir('.'))")
    assert found.passed
    folder, files = found.output.split(maxsplit=1)
    assert files.strip() == "['small']"
    assert not Path(folder).exists()
    assert not run("open('large', 'w').write('x' * (1 << 22))").passed


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9', timeout=1)",
        "import ctypes",
    ],
)
def test_there_is_no_network(attempt: str, granted: str) -> None:
    found = run(attempt)
    assert not found.passed
    assert "not allowed here" in found.output


def test_there_is_no_environment_and_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    found = run("import os, sys\nprint(sorted(os.environ), repr(sys.stdin.read()))")
    assert found.output.strip() == "['HOME', 'LC_ALL', 'TMPDIR'] ''"


def test_output_is_cut() -> None:
    found = run("print('x' * 1_000_000)", output_bytes=2000)
    assert found.passed
    assert found.output == "x" * 2000


def test_right_is_right_whatever_it_prints_and_whatever_stream_it_replaces() -> None:
    assert run("import sys\nsys.stdout = sys.stderr = None").passed
    assert run("import sys\nsys.stdout.close()").passed
