"""States of folders: what a run's record, the attempts and a lease say, and which of them counts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from lit_consistency.records.lease import Lease
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.study.execute.state import (
    Attempt,
    State,
    classify,
    ended,
    headline,
    last_lines,
    read_attempts,
    seconds_of,
    state_of,
    write_attempts,
)

SAID = {
    "ValueError: no loss": State.FAILED,
    "lit_consistency.module.NonFiniteError: step 3: loss is nan": State.DIVERGED,
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB": State.OUT_OF_MEMORY,
    "MemoryError": State.OUT_OF_MEMORY,
    "RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory": State.OUT_OF_MEMORY,
    "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB for an array": State.OUT_OF_MEMORY,
    "MemoryError\n\nDuring handling of it, another:\nKeyError: 'x'": State.FAILED,
    "a warning of a MemoryError in words\nNonFiniteError: at step 1\nof which the batch is\n1 2": State.DIVERGED,
    "error: key: no such": State.FAILED,
}


@pytest.mark.parametrize(("said", "state"), SAID.items())
def test_the_last_exception_decides(said: str, state: State) -> None:
    assert classify(f"Traceback (most recent call last):\n  File x\n{said}\n") is state


def begun(command: str = "fit") -> Attempt:
    return Attempt(command, "host", started=100.0)


def test_nothing_is_missing_and_a_log_is_nothing(tmp_path: Path) -> None:
    assert state_of(tmp_path / "run") is State.MISSING
    (tmp_path / "log.txt").write_text("an empty beginning")
    assert state_of(tmp_path) is State.MISSING


@pytest.mark.parametrize(
    ("record", "attempt", "expected"),
    [
        ({"status": "finished"}, None, State.FINISHED),
        ({"status": "finished"}, (begun(), -signal.SIGSEGV), State.FINISHED),  # died after its last word
        ({"status": "running"}, None, State.INTERRUPTED),
        ({"status": "running"}, (begun(), -signal.SIGSEGV), State.FAILED),
        ({"status": "running"}, (begun(), -signal.SIGKILL), State.INTERRUPTED),
        ({"status": "interrupted"}, (begun(), 143), State.INTERRUPTED),
        ({"status": "interrupted"}, (begun(), 130), State.INTERRUPTED),
        ({"status": "failed", "error": "NonFiniteError: nan"}, None, State.DIVERGED),
        ({"status": "failed", "error": "OutOfMemoryError: CUDA"}, None, State.OUT_OF_MEMORY),
        ({"status": "failed", "error": "KeyError: 'x'"}, (begun(), -signal.SIGTERM), State.INTERRUPTED),
        ({"status": "running"}, (begun(), 0), State.FAILED),  # it says that it went well, and its record does not
        ({}, (begun(), 2), State.FAILED),
        ({}, (begun("evaluate"), 0), State.FINISHED),
        ({}, (begun("evaluate"), 1), State.FAILED),
        ({}, (begun("evaluate"), None), State.INTERRUPTED),  # nobody saw its end
    ],
)
def test_state(tmp_path: Path, record: dict[str, str], attempt: tuple[Attempt, int] | None, expected: State) -> None:
    if record:
        RunFolder(tmp_path).write_record(record)
    if attempt:
        a, status = attempt
        if status is not None:
            a = ended(a, tmp_path, status=status, said="KeyError: 'x'")
            a = Attempt(**{**vars(a), "ended": 101.5})
        write_attempts(tmp_path, [a])
        assert read_attempts(tmp_path) == [a]
        assert seconds_of(tmp_path) == (1.5 if status is not None else 0)
    assert state_of(tmp_path) is expected
    lease = Lease.take(tmp_path)
    assert lease is not None
    assert state_of(tmp_path) is State.RUNNING
    lease.release()
    assert state_of(tmp_path) is expected


def test_a_finished_fit_whose_record_was_removed_is_missing(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_record({"status": "finished"})
    write_attempts(tmp_path, [Attempt(**{**vars(ended(begun(), tmp_path, status=0, said="")), "ended": 101.0})])
    (tmp_path / "run.json").unlink()
    assert state_of(tmp_path) is State.MISSING


def test_the_kernels_kill_for_want_of_memory_is_told_from_any_other(tmp_path: Path) -> None:
    killed = ended(begun(), tmp_path, status=-signal.SIGKILL, said="", killed_for_memory=True)
    assert killed.state is State.OUT_OF_MEMORY
    stopped = ended(begun(), tmp_path, status=-signal.SIGTERM, said="", killed_for_memory=True)
    assert (stopped.state, stopped.error) == (State.INTERRUPTED, "SIGTERM")
    cpp = ended(begun(), tmp_path, status=-signal.SIGABRT, said="terminate called: std::bad_alloc")
    assert cpp.state is State.OUT_OF_MEMORY
    assert ended(begun(), tmp_path, status=-40, said="").error == "signal 40"


def test_what_is_shown_of_an_error() -> None:
    assert last_lines("noise\nerror: key: no such\ndid you mean kye?\n") == "error: key: no such\ndid you mean kye?"
    assert last_lines("\n".join(map(str, range(40)))).split() == [str(n) for n in range(25, 40)]
    assert headline("  File x\nRuntimeError: no loss\n[W] afterwards") == "RuntimeError: no loss"
    assert headline("SIGSEGV\nFatal Python error: Segmentation fault") == "SIGSEGV"


# -------------------- leases


def test_a_lease_is_taken_once_and_given_back(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path / "run")
    assert lease is not None
    assert Lease.take(tmp_path / "run") is None
    assert lease.renew()
    lease.release()
    assert not lease.renew()
    second = Lease.take(tmp_path / "run")
    assert second is not None
    lease.release()  # the first no longer has a say
    assert second.renew()
    second.release()


def test_a_dead_process_holds_nothing_even_before_it_is_waited_for(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        Lease.take(tmp_path)
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie: still listed, and dead
    assert "token" in (tmp_path / "lease.json").read_text()
    lease = Lease.take(tmp_path)
    os.waitpid(pid, 0)
    assert lease is not None
    lease.release()


def test_a_lease_lives_as_long_as_any_of_its_processes(tmp_path: Path) -> None:
    server = os.fork()
    if server == 0:
        time.sleep(60)
        os._exit(0)
    driver = os.fork()
    if driver == 0:
        Lease.take(tmp_path, [server])
        os._exit(0)
    os.waitpid(driver, 0)
    assert Lease.take(tmp_path) is None
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)
    assert Lease.take(tmp_path) is not None


def test_another_hosts_lease_ends_a_minute_after_its_last_renewal(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path)
    assert lease is not None
    file = tmp_path / "lease.json"
    file.write_text(file.read_text().replace('"host": "', '"host": "elsewhere '))
    assert state_of(tmp_path) is State.RUNNING
    now = time.time()
    os.utime(file, (now - 55, now - 55))
    assert Lease.take(tmp_path) is None
    os.utime(file, (now - 65, now - 65))
    assert state_of(tmp_path) is State.MISSING
    mine = Lease.take(tmp_path)
    assert mine is not None
    assert not lease.renew()  # the frozen host learns that it has lost
    assert mine.renew()


def test_of_many_processes_one_takes_an_abandoned_lease(tmp_path: Path) -> None:
    for n in range(4):
        folder = tmp_path / str(n)
        if (first := os.fork()) == 0:
            Lease.take(folder)
            os._exit(0)
        os.waitpid(first, 0)
        (wait, begin), (said, say), (stay, leave) = os.pipe(), os.pipe(), os.pipe()
        pids = []
        for _ in range(6):
            if (pid := os.fork()) == 0:
                os.close(begin)
                os.close(leave)
                os.read(wait, 1)  # all at once
                os.write(say, b"0" if Lease.take(folder) is None else b"1")
                os.read(stay, 1)  # nobody is dead before all have tried
                os._exit(0)
            pids.append(pid)
        os.close(begin)
        answers = b"".join(os.read(said, 1) for _ in pids)
        os.close(leave)
        for pid in pids:
            os.waitpid(pid, 0)
        for descriptor in (wait, said, say, stay):
            os.close(descriptor)
        assert sorted(answers) == sorted(b"000001")
