"""The GPU benchmark where there is none: every part on tiny shapes, and a driver that loses nothing."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from tests.benchmarks import gpu
from tests.benchmarks.on_gpu import place as places
from tests.benchmarks.on_gpu.place import Place
from tests.simulated_cuda import simulated_cuda

# stands in for a worker: a row, and then what its name says
SCRIPT = """
import json, os, signal, sys, time
job = json.loads(sys.stdin.read() or "null")
if job is None: sys.exit(0)
file = open(sys.argv[1], "a")
def write(row): print(json.dumps(row), file=file, flush=True)
write({"begins": job["name"]})
write({"n": 1.5, "limit": job["seconds"]})
if job["name"] == "hangs": time.sleep(60)
if job["name"] == "dies": os.kill(os.getpid(), signal.SIGKILL)
if job["name"] == "fails": write({"error": "Traceback:\\nValueError: broken"}); sys.exit(1)
write({"bar": "n: 1.5, bar <= 1", "value": 1.5, "limit": 1, "met": False})
"""
FAST = ("card", "agreement-muon", "scoring")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in gpu.PARTS]
)
@pytest.mark.filterwarnings("ignore")
def test_every_line_of_a_part_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is worth nothing on a CPU, but that it is the same as on the CPU, which is what it is."""
    monkeypatch.setattr(gpu.Worker, "command", ())
    place = Place("cpu", tiny=True, deadline=time.monotonic() + 600)
    rows = list(gpu.function_of(gpu.PARTS[name])(place))
    assert rows
    assert not [row["error"] for row in rows if "error" in row]
    assert not [row for row in rows if "skipped" in row]
    about_results = ("apart", "equals")
    assert all(row["met"] for row in rows if any(word in row.get("bar", "") for word in about_results)), rows
    json.dumps(gpu.finite(rows))


def run(monkeypatch: pytest.MonkeyPatch, path: Path, *names: str, seconds: float = 60) -> dict[str, Any]:
    """The driver with parts of ``SCRIPT``, all but the first beside their neighbour."""
    monkeypatch.setattr(gpu.Worker, "command", (sys.executable, "-c", SCRIPT))
    monkeypatch.setattr(gpu, "GRACE", 0)
    monkeypatch.setattr(gpu, "LEAST", 0.5)
    monkeypatch.setattr(gpu, "PARTS", {name: gpu.Part("", "", 2) for name in names})
    monkeypatch.setattr(gpu, "ORDER", [[names[0]], list(names[1:3]), *([name] for name in names[3:])])
    assert gpu.main(["--device", "cpu", "--json", str(path), "--seconds", str(seconds)]) == 0
    return json.loads(path.read_text())["parts"]


def test_a_part_that_hangs_dies_or_fails_costs_only_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = run(monkeypatch, tmp_path / "gpu.json", "dies", "hangs", "fails", "good")
    states = {name: part["state"] for name, part in parts.items()}
    assert states == {"dies": "failed", "hangs": "stopped", "fails": "failed", "good": "done"}
    assert all(part["rows"][0]["n"] == 1.5 for part in parts.values())
    assert parts["dies"]["why"] == "its process ended with status -9"
    assert parts["hangs"]["seconds"] < 10
    printed = capsys.readouterr().out
    for line in ("MISSED n: 1.5, bar <= 1", "stopped hangs: its 2 s are over", "ERROR fails : ValueError: broken"):
        assert line in printed


def test_what_does_not_fit_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = run(monkeypatch, tmp_path / "gpu.json", "hangs", "a", "b", "c", seconds=1)
    assert parts["hangs"]["rows"][0]["limit"] < 1
    assert [parts[name]["state"] for name in "abc"] == ["skipped"] * 3
    assert "of the whole are left" in parts["a"]["why"]


def test_a_signal_keeps_what_there_is_and_ends_the_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    workers: list[gpu.Worker] = []
    begin = gpu.Worker.go

    def go(self: gpu.Worker, *job: Any) -> None:
        workers.append(self)
        begin(self, *job)

    monkeypatch.setattr(gpu.Worker, "go", go)
    timer = threading.Timer(1.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    parts = run(monkeypatch, tmp_path / "gpu.json", "hangs", "a")
    timer.join()
    assert parts["hangs"]["state"] == parts["a"]["state"] == "stopped"
    assert parts["hangs"]["rows"][0]["n"] == 1.5
    assert [worker.process.poll() for worker in workers] == [-signal.SIGKILL]


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(gpu, "gpu_is_there", return_value=False):
        assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 0
    assert capsys.readouterr().out == "no GPU is at hand: nothing is measured\n"
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"] == {}


def test_unknown_parts_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--only", "packing,speed"])
    assert "--only speed: expected some of card, agreement" in capsys.readouterr().err


def test_a_worker_writes_row_by_row_and_last_why_it_failed(tmp_path: Path) -> None:
    def rows() -> Any:
        yield {"a": float("nan")}
        assert json.loads(path.read_text()) == {"a": None}
        raise ValueError("broken")

    path = tmp_path / "rows.jsonl"
    with open(path, "w") as file:
        assert gpu.write_rows(rows(), file) == 1
    last = json.loads(path.read_text().splitlines()[-1])
    assert "ValueError: broken" in last["error"]


@pytest.mark.parametrize(("name", "tflops"), [("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H200", 989.5)])
def test_lines_for_cuda_run_and_the_peak_is_the_dense_one(name: str, tflops: float) -> None:
    """Data sheets: H100 and H200 SXM 1,979 TFLOP/s with sparsity, twice the dense rate."""
    properties = SimpleNamespace(
        name=name, major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132, gcnArchName=""
    )
    with (
        simulated_cuda(),
        mock.patch("torch.cuda.get_device_name", return_value=name),
        mock.patch("torch.cuda.get_device_properties", return_value=properties),
        mock.patch("torch.cuda.max_memory_allocated", return_value=3 * 2**30),
        mock.patch("torch.cuda.reset_peak_memory_stats"),
        mock.patch("torch.cuda.empty_cache"),
    ):
        first, second = places.card(Place("cuda", tiny=True, deadline=time.monotonic() + 60))
        places.release("cuda")
        assert places.peak_gib("cuda") == 3
        assert places.peak_flops("cuda") / 1e12 == pytest.approx(tflops, rel=1e-3)
    assert (first["card"], first["memory GiB"]) == (name, 80)
    # a millisecond lies between any two simulated events, and a mebibyte is read and written five times
    assert second["copy TB/s"] == pytest.approx(2 * 2**20 * 5 / 1e-3 / 1e12)


def test_too_large_a_micro_batch_gives_way_to_a_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.benchmarks.on_gpu import training

    tried: list[int] = []

    def steps(size: Any, precision: str, compiled: str, micro_batch: int, place: Place) -> dict[str, Any]:
        tried.append(micro_batch)
        if micro_batch > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"micro-batch": micro_batch}

    monkeypatch.setattr(training, "_steps", steps)
    place = Place("cpu", tiny=False, deadline=time.monotonic() + 60)
    assert training._pretraining(training.SIZES["1B"], "bf16-mixed", "no", place) == {"micro-batch": 8}
    assert tried == [16, 8]


@pytest.mark.filterwarnings("ignore")
def test_one_program_serves_all_blocks() -> None:
    """Else twelve blocks would be compiled one by one, until torch refuses."""
    from tests.benchmarks.on_gpu import training

    place = Place("cpu", tiny=True, deadline=time.monotonic() + 60)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with mock.patch.dict(training.TINY, {"n_layer": 6}):
        model = training.new_model(training.SIZES["124M"].settings, "bf16-mixed", "blocks", place)
    batches = training.forever([training.random_batch(2, 64, 256, "cpu", 0)])
    step = training.training_step(model, "bf16-mixed", batches, place)
    step()
    step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
