"""Options and jobs that cannot be are refused; cores and shares of GPUs are counted."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from lit_consistency.study.execute import progress
from lit_consistency.study.execute.options import Capacity, ExecutionOptions, check_jobs
from lit_consistency.study.execute.progress import ProgressReport, Throughput
from lit_consistency.study.execute.state import State
from lit_consistency.study.job import Job


def job(name: str = "a", **options: object) -> Job:
    return Job(**{"name": name, "folder": Path(name), "argv": ("fit",), **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "workers = 0: expected at least 1"),
        ({"threads": 0}, "threads = 0: expected at least 1"),
        ({"retries": -1}, "retries = -1: expected at least 0"),
        ({"time_limit": 0.0}, "time_limit = 0.0: expected hours above 0"),
        ({"devices": ["1", "1"]}, "1 is there twice"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ExecutionOptions(**options)  # type: ignore[arg-type]


def test_options_are_those_of_a_command_line() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ExecutionOptions, "execution")
    given = parser.parse_args(["--execution.workers=3", "--execution.devices=[0, 1]", "--execution.time_limit=1.5"])
    built = parser.instantiate_classes(given).execution
    assert built == ExecutionOptions(workers=3, devices=[0, 1], time_limit=1.5)
    assert built.device_names == ["0", "1"]
    assert "jobs at a time" in parser.format_help()


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ([job(), job(folder=Path("b"))], "job a: is there twice"),
        ([job(), job("b", folder=Path("b/../a"))], "job b: b/../a is the folder of a too"),
        ([job(argv=())], "job a: argv = (): expected a command"),
        ([job(threads=0)], "job a: threads = 0: expected at least 1"),
        ([job(devices=-0.5)], "job a: devices = -0.5: expected a share"),
        ([job(devices=1.5)], "job a: devices = 1.5: expected a share of one, or a whole number"),
        ([job(devices=3.0)], "job a: devices = 3.0: expected at most the 2 GPUs of this machine"),
        ([job(needs=("b",))], "job a: needs 'b': expected the name of a job"),
        ([job(needs=("b",)), job("b", needs=("a",)), job("c")], "jobs a, b: need each other"),
    ],
)
def test_jobs_that_cannot_be(jobs: list[Job], words: str) -> None:

    capacity = Capacity(ExecutionOptions(devices=["0", "1"]), cores=4)
    with pytest.raises(ValueError, match=re.escape(words)):
        check_jobs(jobs, capacity)


def test_a_thousand_needs_in_a_row_are_an_order() -> None:
    jobs = [job(str(n), needs=(str(n - 1),) if n else ()) for n in range(2000)]
    began = time.process_time()
    assert len(check_jobs(jobs[::-1])) == 2000
    assert time.process_time() - began < 1


def test_cores_are_shared_by_threads() -> None:
    capacity = Capacity(ExecutionOptions(threads=2, devices=[]), cores=5)
    assert capacity.slots == 2
    first, wide = job("first", threads=2), job("wide", threads=8)
    assert capacity.take(first) == []
    assert capacity.take(wide) is None
    capacity.give_back(first)
    assert capacity.take(wide) == []  # alone, because there is no more
    assert capacity.take(first) is None
    capacity.give_back(wide)
    assert Capacity(ExecutionOptions(threads=8, devices=[]), cores=2).slots == 1


def test_gpus_are_shared_and_whole_ones_are_kept_free() -> None:
    capacity = Capacity(ExecutionOptions(workers=20, devices=["0", "1"]))
    thirds = [job(f"third{n}", devices=1 / 3) for n in range(6)]
    assert [capacity.take(third) for third in thirds[:3]] == [["0"]] * 3
    pair, whole = job("pair", devices=2.0), job("whole", devices=1.0)
    assert capacity.take(pair) is None
    assert capacity.take(whole) == ["1"]
    assert capacity.take(thirds[3]) is None
    for taken in (*thirds[:3], whole):
        capacity.give_back(taken)
    assert capacity.take(pair) == ["0", "1"]


def test_gpus_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-8f")
    assert list(Capacity(ExecutionOptions()).free_devices) == ["2", "GPU-8f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not Capacity(ExecutionOptions()).free_devices


# -------------------- progress


def test_the_end_is_told_by_what_jobs_of_a_stage_take() -> None:
    now = [1000.0]
    throughput = Throughput(lambda: now[0])
    jobs = {name: job(name, stage=name[0]) for name in ("p1", "p2", "f1", "f2", "f3", "f4")}
    report = ProgressReport(print, throughput)
    states = dict.fromkeys(jobs, State.MISSING)
    assert report.line(jobs, states, {}) == "finished 0 of 6"
    throughput.add("p", 900.0, before=True)  # an earlier call's says how long, but nothing of today's rate
    now[0] += 360
    throughput.add("f", 60.0)
    throughput.add("f", 120.0)
    states |= {"p1": State.FINISHED, "f1": State.FINISHED, "f2": State.FINISHED, "f3": State.FAILED}
    states |= {"p2": State.RUNNING, "f4": State.MISSING}
    # p2 has 600 s left of 900, f4 takes (60 + 120) / 2
    end = time.strftime("%H:%M", time.localtime(1360 + 600 + 90))
    line = report.line(jobs, states, {"p2": 300.0})
    assert line == f"finished 3 of 6 (1 running, 1 failed), 20 per hour, done about {end}"


def test_a_terminal_has_a_bar_and_lines_for_single_jobs_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    said: list[str] = []
    terminal = Terminal()
    with ProgressReport(said.append, Throughput(), terminal) as report:
        report.update({"a": job()}, {"a": State.RUNNING}, {})
        report.say("a: failed")
        report.update({"a": job()}, {"a": State.FINISHED}, {})
    assert " finished 1 of 1" in terminal.getvalue()
    assert said == ["a: failed", "finished 1 of 1"]


def test_lines_are_said_once_a_minute_and_when_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    said: list[str] = []
    jobs = {"a": job()}
    with ProgressReport(said.append, Throughput()) as report:
        for second in range(130):
            now[0] = float(second)
            report.update(jobs, {"a": State.RUNNING if second < 125 else State.FINISHED}, {})
    assert [line.split(",")[0] for line in said] == [*["finished 0 of 1 (1 running)"] * 3, "finished 1 of 1"]
