"""Generated programs are run, and held in; the limits here are small, so that a hole in them does no harm."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lit_consistency.tasks.code import run as code
from lit_consistency.tasks.code.run import (
    NEEDED,
    CodeResult,
    Limits,
    confinement,
    humaneval_tests,
    needed_walls,
    run_many,
    run_tests,
)

LIMITS = Limits(wall_seconds=5.0, cpu_seconds=2, memory_bytes=1 << 28, file_bytes=1 << 20, n_files=32, n_processes=8)
RIGHT = "def double(x):\n    return 2 * x\n"
TEST = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n"
TESTS = humaneval_tests(TEST, "double")


def run(extra: str = "", tests: str = TESTS, needed: Sequence[str] = (), **limits: float) -> CodeResult:
    return run_tests(RIGHT + extra, tests, needed=needed, limits=LIMITS._replace(**limits))


@pytest.fixture(params=["walls", "nothing"])
def granted(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The walls that stand here, and a kernel that grants no namespace."""
    if request.param == "nothing":
        grant_nothing(tmp_path, monkeypatch)
    return request.param


def grant_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, start = code.SANDBOX.read_text(), 'if __name__ == "__main__":'
    assert source.count(start) == 1
    without = tmp_path / "sandbox.py"
    without.write_text(source.replace(start, "isolate = lambda: []\n\n" + start))
    monkeypatch.setattr(code, "SANDBOX", without)
    monkeypatch.setattr(code, "walls", lambda: ("namespaces", ("namespaces", "user"), "not granted"))
    if os.geteuid() == 0:  # root is given up, and then its own Python may be out of reach
        python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
        if python is None:
            pytest.skip("needs a Python that every user can read")
        monkeypatch.setattr(sys, "executable", python)


@pytest.fixture
def behind_walls() -> None:
    """Only where walls can be built; elsewhere nothing runs, as another test says."""
    if not set(NEEDED) <= set(code.walls()[1]):
        pytest.skip(f"no walls here: {code.walls()[2]}")


def test_the_result_says_what_stood_around_it(behind_walls: None, granted: str) -> None:
    found = run()
    assert found.passed
    if granted == "nothing":
        assert not {"network", "files", "processes"} & set(found.confined)
        assert confinement([found]).startswith("programs ran UNCONFINED (of the walls stood: user)")
    else:
        assert {*NEEDED, "ipc"} <= set(found.confined)
        assert confinement([found]).startswith(f"programs ran confined by {found.confined[0]}: network, files, proc")


def test_it_runs_only_when_allowed_and_without_walls_only_by_another_word(monkeypatch: pytest.MonkeyPatch) -> None:
    for unconfined in (False, True):
        with pytest.raises(ValueError, match="expected --allow_code_execution"):
            needed_walls(False, unconfined)
    monkeypatch.setattr(code, "walls", lambda: ("namespaces", ("namespaces", "user"), "not permitted"))
    with pytest.raises(
        ValueError, match=r"network, files, processes missing \(not permitted\); .*allow_unconfined_code"
    ):
        needed_walls(True, False)
    assert needed_walls(True, True) == ()


def test_nothing_runs_where_a_wall_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grant_nothing(tmp_path, monkeypatch)
    with pytest.raises(RuntimeError, match="not confined: network, files, processes$"):
        run("print('has run')", needed=NEEDED)


def test_right_passes_and_wrong_fails_with_its_error() -> None:
    right, wrong = run_many([(RIGHT, TESTS), ("def double(x):\n    return x * x\n", TESTS)], needed=(), n_parallel=2)
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
    found = run_tests(wrong, TESTS, needed=(), limits=LIMITS)
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
    assert not run_tests(wrong, TESTS, needed=(), limits=LIMITS).passed


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


# -------------------- programs that mean it: another interpreter, started around the second line, knows no audit hook
# (not that of a virtual environment, whose folder may be its owner's alone)

AROUND = """
import os, subprocess, sys, signal, time
sys.audit = lambda *arguments: None
def fresh(text):
    done = subprocess.run([sys._base_executable, "-I", "-c", text], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return done.returncode
"""


@pytest.fixture
def at_home(behind_walls: None) -> Iterator[Path]:
    """A folder in the user's home, with a secret."""
    folder = Path(tempfile.mkdtemp(prefix=".lit_consistency-test-", dir=Path.home()))
    folder.chmod(0o777)
    (folder / "secret").write_text("the secret")
    (folder / "secret").chmod(0o666)
    yield folder
    shutil.rmtree(folder)


def test_neither_home_nor_temporary_nor_run_folder_is_there(at_home: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the secret")
    reads = [f"print(open({str(folder / 'secret')!r}).read())" for folder in (at_home, tmp_path)]
    shows = "import os; print('shown', sorted(os.listdir('/')), os.path.exists('/run'), os.listdir('/tmp'))"
    writes = f"open({str(at_home / 'written')!r}, 'w').write('x')"
    found = run(
        f"{AROUND}for text in {[*reads, writes]!r}:\n    assert fresh(text) != 0\nassert fresh({shows!r}) == 0",
        needed=NEEDED,
    )
    assert found.passed, found.output
    assert found.output.count("FileNotFoundError") + found.output.count("PermissionError") == 3
    assert "the secret" not in found.output
    assert not (at_home / "written").exists()
    assert "'home'" not in found.output
    assert tmp_path.parts[2] not in found.output.partition("shown")[2]


def test_neither_the_network_nor_a_socket_of_the_machine_is_reached(at_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(at_home / "socket"))
        (at_home / "socket").chmod(0o777)
        local.listen()
        outside = [
            f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=2)",
            f"import socket; socket.socket(socket.AF_UNIX).connect({str(at_home / 'socket')!r})",
        ]
        found = run(f"{AROUND}for text in {outside!r}:\n    assert fresh(text) != 0", needed=NEEDED)
        assert found.passed, found.output
        for listening in (server, local):
            listening.settimeout(0.1)
            with pytest.raises(TimeoutError):
                listening.accept()


def test_who_kills_reaches_only_its_own(behind_walls: None) -> None:
    """This process, its parent, and every process that it may signal."""
    targets = f"os.getppid(), {os.getpid()}, -1"
    found = run(
        f"import os\nfor process in ({targets}):\n    try: os.kill(process, 9)\n    except OSError: pass", needed=NEEDED
    )
    assert found.reason in ("passed", "killed by SIGKILL", "no report")
    assert run(needed=NEEDED).passed


def test_memory_of_all_processes_together_is_limited(behind_walls: None) -> None:
    """Four with 80 MB each: none of them reaches the limit of 256 MB by itself."""
    found = run(
        "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n        block = bytearray(b'x') * (80 << 20)\n"
        "        time.sleep(30)\ntime.sleep(30)",
        needed=NEEDED,
        wall_seconds=20,
    )
    assert found.reason == "memory"


def test_a_fork_bomb_ends_with_its_program(behind_walls: None) -> None:
    began = time.monotonic()
    found = run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", needed=NEEDED, wall_seconds=2)
    assert not found.passed
    assert time.monotonic() - began < 20
    left = [name for name in os.listdir("/proc") if name.isdigit() and b"sandbox.py" in command(name)]
    assert not left


def test_a_cgroup_holds_the_program_where_one_may_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind_walls: None
) -> None:
    """Of the kernel's part there are only files here: that they are written, before the program begins."""
    (tmp_path / "own").write_text("12:cpu:/x\n0::/user/session\n")
    (tmp_path / "groups" / "user").mkdir(parents=True)
    monkeypatch.setattr(code, "CGROUP", tmp_path / "own")
    monkeypatch.setattr(code, "CGROUPS", tmp_path / "groups")
    seen: dict[str, str] = {}

    def remove(folder: Path) -> None:
        seen.update({file.name: file.read_text() for file in folder.iterdir()})
        shutil.rmtree(folder)

    monkeypatch.setattr(Path, "rmdir", remove)
    found = run(needed=NEEDED)
    assert found.passed
    assert "memory" in found.confined
    assert "memory sampled" not in found.confined
    assert seen["memory.max"] == str(LIMITS.memory_bytes)
    assert int(seen["cgroup.procs"]) > 1
    assert not list((tmp_path / "groups" / "user").iterdir())
