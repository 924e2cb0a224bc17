"""The loop of all engines: what is run, what is run again, and what is left alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_consistency.records.lease import Lease
from lit_consistency.study.execute.engine import execute
from lit_consistency.study.execute.local import LocalProcesses, ProcessFailed
from lit_consistency.study.execute.options import ExecutionOptions
from lit_consistency.study.execute.retries import INTERRUPTIONS
from lit_consistency.study.execute.state import State, read_attempts, state_of
from lit_consistency.study.job import Job
from tests.runs import ROOT
from tests.study.execute.drive import TINY, run, tiny_job

FINISHED, FAILED, MISSING = State.FINISHED, State.FAILED, State.MISSING


def attempts(job: Job) -> list[str]:
    return [attempt.state.value for attempt in read_attempts(job.folder)]


def until(what: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_job_ends_in_its_state_and_is_run_again_as_that_deserves(tmp_path: Path) -> None:
    ways = ("finish", "fail", "abort", "memory", "memory_once", "diverge", "kill_once", "killed", "refuse")
    jobs = {do: tiny_job(tmp_path, do, do, command="evaluate" if do == "refuse" else "fit") for do in ways}
    jobs["after"] = tiny_job(tmp_path, "after", needs=("finish", "kill_once"))
    jobs["never"] = tiny_job(tmp_path, "never", needs=("after", "fail"))
    jobs["neither"] = tiny_job(tmp_path, "neither", needs=("never",))
    said: list[str] = []
    states = run(list(jobs.values()), said)
    assert {name: (str(states[name]), attempts(job)) for name, job in jobs.items()} == {
        "finish": ("finished", ["finished"]),
        "after": ("finished", ["finished"]),
        "fail": ("failed", ["failed"]),
        "refuse": ("failed", ["failed"]),
        "abort": ("failed", ["failed"]),
        "memory": ("out of memory", ["out of memory"] * 2),
        "memory_once": ("finished", ["out of memory", "finished"]),
        "diverge": ("diverged", ["diverged"]),
        "kill_once": ("finished", ["interrupted", "finished"]),
        "killed": ("interrupted", ["interrupted"] * INTERRUPTIONS),
        "never": ("missing", []),
        "neither": ("missing", []),
    }
    # what had too little memory beside others has had all of it
    assert [a.beside > 0 for a in read_attempts(jobs["memory"].folder)] == [True, False]
    text = "\n".join(said)
    assert "not run, because fail is failed: never" in text
    assert "not run, because never is missing: neither" in text
    text = re.sub(r"after \d+ s: ", "after N s: ", text)
    assert f"diverge: diverged after N s: NonFiniteError: step 3: the loss is nan ({tmp_path}/diverge/log.txt)" in text
    assert "refuse: failed after N s: error: key: no such (" in text
    assert not list(tmp_path.glob("*/lease.json"))
    # the same call again does nothing but what was interrupted
    again = run(list(jobs.values()))
    assert again == states
    assert attempts(jobs["memory"]) == ["out of memory"] * 2
    assert len(attempts(jobs["killed"])) == 2 * INTERRUPTIONS
    # and another one runs what has failed, but not what diverged
    run([jobs["fail"], jobs["memory"], jobs["diverge"]], retry_failed=True)
    assert attempts(jobs["fail"]) == ["failed"] * 2
    assert attempts(jobs["memory"]) == ["out of memory"] * 4
    assert attempts(jobs["diverge"]) == ["diverged"]


def test_retries_are_counted_over_calls(tmp_path: Path) -> None:
    once, always = tiny_job(tmp_path, "once", "fail_once"), tiny_job(tmp_path, "always", "fail")
    assert run([once, always], retries=2) == {"once": FINISHED, "always": FAILED}
    assert attempts(once) == ["failed", "finished"]
    assert attempts(always) == ["failed"] * 3
    run([always], retries=3)
    assert len(attempts(always)) == 4


def test_a_process_is_as_by_hand(tmp_path: Path) -> None:
    """Arguments, ``__main__``, threads, session, log; nothing of one number of threads reaches another."""
    jobs = [tiny_job(tmp_path, f"threads{n}", threads=n, devices=n / 4) for n in (1, 2)]
    run([*jobs, tiny_job(tmp_path, "no_gpu")], threads=2, devices=["3"])
    for n, job in zip((1, 2), jobs, strict=True):
        seen = json.loads((job.folder / "seen.json").read_text())
        expected = {"OMP_NUM_THREADS": str(n), "CUDA_VISIBLE_DEVICES": "3"}
        assert seen == {**expected, "argv": list(job.argv), "main": "__main__"}
        header, *lines = (job.folder / "log.txt").read_text().splitlines()
        assert header.endswith(f"OMP_NUM_THREADS={n} python -m tests.study.execute.tiny {' '.join(job.argv)}")
        assert lines == ["began finish"]
    assert json.loads((tmp_path / "no_gpu" / "seen.json").read_text())["CUDA_VISIBLE_DEVICES"] == ""


def test_jobs_become_known_while_others_finish(tmp_path: Path) -> None:
    def jobs() -> list[Job]:
        known = [tiny_job(tmp_path, "0")]
        while len(known) < 4 and state_of(known[-1].folder) is FINISHED:
            known.append(tiny_job(tmp_path, str(len(known)), needs=(known[-1].name,)))
        return known

    states = execute(jobs, ExecutionOptions(devices=[]), print, TINY)
    assert states == dict.fromkeys("0123", FINISHED)


def test_no_more_run_at_a_time_than_there_are_workers(tmp_path: Path) -> None:
    jobs = [tiny_job(tmp_path, str(n), steps=10) for n in range(6)]
    run(jobs, workers=2)
    spans = [(a.started, a.ended) for job in jobs for a in read_attempts(job.folder)]
    side_by_side = [sum(start <= now < end for start, end in spans if end) for now, _ in spans]
    assert max(side_by_side) == 2


def test_a_time_limit_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_consistency.study.execute.worker.GRACE", 0.2)
    hangs = tiny_job(tmp_path, "hangs", "hang")  # not even SIGTERM ends it
    assert run([hangs], time_limit=0.5 / 3600) == {"hangs": FAILED}
    assert read_attempts(hangs.folder)[0].error.startswith("stopped after time_limit")


def test_what_another_took_over_is_stopped_and_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_consistency.records.lease.RENEWED_EVERY", 0.1)
    job = tiny_job(tmp_path, "job", "wait")

    def take_over() -> None:
        until(lambda: (job.folder / "run.json").is_file())
        (job.folder / "lease.json").unlink()
        lease = Lease.take(job.folder)
        until(lambda: any("taken it over" in line for line in said))
        assert read_attempts(job.folder)[-1].ended is None
        assert lease is not None
        (job.folder / "run.json").write_text('{"status": "finished"}')
        lease.release()

    said: list[str] = []
    thread = threading.Thread(target=take_over)
    thread.start()
    assert run([job], said) == {"job": FINISHED}
    thread.join()
    assert attempts(job) == ["running"]


def test_a_failed_import_says_why(tmp_path: Path) -> None:
    entry = type(TINY)("tests.study.execute.tiny", ("no_such_module_of_ours",))
    with pytest.raises(ProcessFailed, match="No module named 'no_such_module_of_ours'"):
        execute(lambda: [tiny_job(tmp_path, "a")], ExecutionOptions(devices=[]), print, entry)
    assert not list(tmp_path.glob("*/lease.json"))


def test_elsewhere_than_on_linux_a_process_imports_for_itself(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, "job", command="evaluate")
    job.folder.mkdir()
    with LocalProcesses(TINY, import_once=False) as processes:
        pid = processes.start(job, job.folder / "log.txt", None)
        ended = []
        until(lambda: ended.extend(processes.wait(0.1)) or ended)
    assert [(end.pid, end.status) for end in ended] == [(pid, 0)]
    assert json.loads((job.folder / "seen.json").read_text())["argv"] == list(job.argv)


# -------------------- signals


def drive(root: Path, *jobs: str, workers: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.study.execute.drive", str(root), str(workers), *jobs]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_the_first_signal_lets_jobs_save_and_the_second_kills_them(tmp_path: Path) -> None:
    driver = drive(tmp_path, "saves:finish:3000", "hangs:hang:1", "later:finish:1:saves")
    until(lambda: all((tmp_path / name / "run.json").is_file() for name in ("saves", "hangs")))
    driver.send_signal(signal.SIGINT)
    until((tmp_path / "saves" / "step").is_file)
    until(lambda: not (tmp_path / "saves" / "lease.json").is_file())
    assert (tmp_path / "hangs" / "lease.json").is_file()
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, output
    assert "SIGINT: 2 running jobs save and stop; a second signal kills them" in output
    states = [state_of(tmp_path / name).value for name in ("saves", "hangs", "later")]
    assert states == ["interrupted", "interrupted", "missing"]
    assert [read_attempts(tmp_path / name)[-1].status for name in ("saves", "hangs")] == [143, -9]
    assert not list(tmp_path.glob("*/lease.json"))


def test_jobs_of_a_killed_driver_save_and_their_folders_are_free_when_they_have(tmp_path: Path) -> None:
    driver = drive(tmp_path, "job:finish:3000")
    until((tmp_path / "job" / "run.json").is_file)
    driver.kill()
    until((tmp_path / "job" / "step").is_file)
    until(lambda: state_of(tmp_path / "job") is State.INTERRUPTED)
    driver.communicate(timeout=60)
    step = int((tmp_path / "job" / "step").read_text())
    assert run([tiny_job(tmp_path, "job", steps=step + 1)]) == {"job": FINISHED}
    assert not [name for name in ("twice", "again") if (tmp_path / "job" / name).exists()]


def test_a_process_dies_with_its_server_and_runs_again(tmp_path: Path) -> None:
    driver = drive(tmp_path, "job:finish:50")
    until((tmp_path / "job" / "run.json").is_file)
    lease = json.loads((tmp_path / "job" / "lease.json").read_text())
    os.kill(lease["processes"][1][0], signal.SIGKILL)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, output
    assert attempts(tiny_job(tmp_path, "job")) == ["interrupted", "finished"]
    assert not (tmp_path / "job" / "twice").exists()
