"""Several processes measure what one does, to the bit; mistakes in their number are said before anything is done."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lit_consistency.distributed.ranks import KEYS, check_devices
from tests.runs import ROOT
from tests.tasks.tiny import evaluate


def files(folder: Path) -> dict[str, str]:
    """What was measured, without when: results and items."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for kind in ("results", "items")
        for path in sorted((folder / kind).iterdir())
    }


@pytest.mark.slow
@pytest.mark.parametrize("way", ["devices", "torchrun"])
def test_two_processes_measure_what_one_does(way: str, tasks: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    evaluate(tiny_folder, "--tasks", *tasks, "--output", tmp_path / "one")
    command = ["-m", "lit_consistency", "evaluate", f"--model={tiny_folder}", "--tasks", *tasks, "--device=cpu"]
    command.append(f"--output={tmp_path / 'two'}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    starts = [[*command, "--devices=2"]]
    places: list[dict[str, str]] = [{}]
    if way == "torchrun":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        starts = [command, command]
        places = [dict(zip(KEYS, (rank, "2", rank, "127.0.0.1", port), strict=True)) for rank in ("0", "1")]
    processes = [
        subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environment | place, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for words, place in zip(starts, places, strict=True)
    ]
    ends = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), ends
    assert b"nli" in ends[0][0]
    if way == "torchrun":
        assert ends[1][0] == b"", "the first one speaks for all"
    assert files(tmp_path / "two") == files(tmp_path / "one")
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert summaries[0]["results"] == summaries[1]["results"]


@pytest.mark.parametrize(
    ("devices", "device", "torchrun", "said"),
    [
        (0, "cpu", {}, "devices = 0: expected at least 1, or -1"),
        (-1, "auto", {}, "devices = -1: expected at most 0, the GPUs here"),
        (2, "cuda:1", {}, "device = 'cuda:1' with 2 processes: expected auto, cpu or cuda"),
        (2, "cuda", {}, "devices = 2: expected at most 0"),
        (2, "cpu", dict.fromkeys(KEYS, "2"), "devices = 2 under torchrun: expected 1"),
    ],
)
def test_a_mistake_in_the_devices_is_said(
    devices: int, device: str, torchrun: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for key, value in torchrun.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=said):
        check_devices(devices, device)


def test_one_process_is_alone_and_torchrun_tells_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_devices(1, "cuda:3") == 1
    assert check_devices(3, "cpu") == 3
    for key in KEYS:
        monkeypatch.setenv(key, "4")
    assert check_devices(1, "cpu") == 4
