"""``check-optimizer``: the table, the exit status, and mistakes in the call."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from lit_consistency.__main__ import main
from lit_consistency.cli import check_optimizer, optimizer_front
from lit_consistency.distributed import optimizer_contract
from lit_consistency.records.run_folder import FINISHED, RunFolder

SIGNS = "tests.optimizers.broken.SignDescent"


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes have a test of their own, in tests/optimizers/test_contract_catches.py."""
    monkeypatch.setattr(optimizer_contract, "on_two_processes", lambda build: {"DDP": None, "FSDP2": "rank 1: apart"})


def outcome(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["check-optimizer", *args])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.mark.usefixtures("one_process")
def test_the_table_names_what_fails_and_the_status_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = outcome(capsys, SIGNS, "--args.lr", "0.01")
    assert status == 1
    assert f"{SIGNS}(lr=0.01)" in out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    failed = [what for what, line in lines.items() if " FAIL " in line]
    assert failed == ["FSDP2, 2 processes"]
    assert "not applicable" in lines["bfloat16: small steps"]
    assert "train in bf16-mixed or 32-true" in " ".join(out.split())
    assert "rank 1: apart" in lines["FSDP2, 2 processes"]
    passed = [what for what, line in lines.items() if line.removeprefix(what).strip().startswith("pass")]
    assert len(passed) == 12
    assert "measured" in lines["cost of a step"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "expected the path of a class first"),
        (["--args.lr", "1"], "expected the path of a class first"),
        (["my_pkg.MyOpt"], "my_pkg"),
        (["os.system"], "expected a subclass of torch.optim.optimizer.Optimizer"),
        ([SIGNS, "--args.learning_rate", "1"], "learning_rate"),
        ([SIGNS, "--args.lr", "high"], "lr"),
        ([SIGNS, "--args.lr=-1"], "lr = -1.0: expected at least 0"),
    ],
)
def test_a_mistake_in_the_call_is_one_line_and_status_two(
    args: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, error = outcome(capsys, *args)
    first = error.splitlines()[0]
    assert (status, out) == (2, "")
    assert words in first
    assert "optimizer.init_args" not in first


@pytest.mark.usefixtures("one_process")
def test_a_class_that_takes_no_groups_fails_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = outcome(capsys, "torch.optim.LBFGS")
    assert status == 1
    assert "parameter groups" in " ".join(out.split())


def test_the_front_runs_every_rate_of_both_and_shows_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []

    def fit(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        given = dict(word.removeprefix("--").split("=", 1) for word in command if "=" in word)
        if "SignDescent-0.03" in given["run.name"]:
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nRuntimeError: too far\n")
        now = {optimizer_front.LEARNED: 0.5, optimizer_front.FORGOTTEN: 0.9, optimizer_front.TEXT: 1.25}
        now |= {f"{key}.stderr": 0.01 for key in list(now)}
        base = dict.fromkeys(now, 0.75)
        folder = RunFolder(optimizer_front.Path(given["run.root"]) / given["run.name"])
        folder.write_record({"status": FINISHED, "final_metrics": now, "base_metrics": base})
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(optimizer_front.subprocess, "run", fit)
    assert not optimizer_front.print_front(SIGNS, {"lr": 0.01}, 20)
    out = capsys.readouterr().out.splitlines()
    assert len(calls) == 6
    assert all(command[0] == sys.executable and "--trainer.max_steps=20" in command for command in calls)
    assert [line.split()[:2] for line in out[3:]] == [
        *[["SignDescent", lr] for lr in ("0.0033", "0.01", "0.03")],
        *[["AdamW", lr] for lr in ("0.0001", "0.0003", "0.0009")],
    ]
    assert out[3].split()[2:] == ["0.500", "±", "0.010", "0.900", "±", "0.010", "+0.50"]
    assert out[5].endswith("failed: RuntimeError: too far")
    with pytest.raises(ValueError, match="lr = None"):
        optimizer_front.print_front(SIGNS, {}, 20)


def test_what_refuses_bfloat16_is_said_and_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(groups: Any) -> Any:
        import torch

        if groups[0]["params"][0][1].dtype == torch.bfloat16:
            raise ValueError("float32 only")
        return torch.optim.SGD(groups)

    rows = check_optimizer._in_bfloat16(build)
    assert [row.outcome for row in rows] == ["not applicable"] * 2
    assert "float32 only" in rows[0].why
