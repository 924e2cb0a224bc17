"""Everything that only a GPU can tell, in one command of at most 8 minutes.

    python -m tests.benchmarks.gpu --json gpu.json [--seconds 450] [--only pretraining,steps]

First whether results are right: every optimizer against the CPU's, a stopped run against a straight one, FSDP2 against
one device; these run side by side. Then, one after the other, how fast: pretraining at 124M and 1B, a step of every
optimizer, packed rows against single ones, scores and texts against transformers', the whole command. Bars are printed
beside the numbers, and missing one changes no exit status: that is for who reads the table.

Each part runs in a process of its own with a limit of its own, so that a crash, a lost device or a hang costs that part
alone; what does not fit into ``--seconds`` is skipped by name. Every row goes into the JSON as soon as it is there.
Where no GPU is at hand this says so, and the table is empty. The next part's process imports its modules while this
part runs. Given up: parts that share compiled programs, and a last bit of quiet while a neighbour imports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

from lit_consistency.records.atomic import write_text

ROOT = Path(__file__).parents[2]
LEAST = 10  # seconds below which no part is begun
GRACE = 5  # seconds that a part may take to notice that its own are over
IMPORTING = 90  # seconds for a process's modules, which do not count as the part's
Row = dict[str, Any]


class Part(NamedTuple):
    """A function of a module in ``tests/benchmarks/on_gpu``, and the most seconds that it may take."""

    module: str
    function: str
    seconds: float


PARTS: dict[str, Part] = {
    "card": Part("place", "card", 40),
    "agreement": Part("optimizers", "agreement", 120),
    "agreement-muon": Part("optimizers", "agreement_of_muon", 120),
    "resume": Part("runs", "resume", 120),
    "fsdp": Part("runs", "fsdp", 100),
    "waiting": Part("waiting", "waiting", 100),
    "pretraining": Part("training", "pretraining", 180),
    "steps": Part("optimizers", "steps", 140),
    "packing": Part("training", "packing", 70),
    "scoring": Part("inference", "scoring", 60),
    "generation": Part("inference", "generation", 60),
    "command": Part("runs", "command", 60),
}
# what stands together runs side by side: it measures no time. Then by importance, as the end may be cut off
ORDER = [["card"], ["agreement", "agreement-muon", "resume", "fsdp", "waiting"]]
ORDER += [[name] for name in ("pretraining", "steps", "packing", "scoring", "generation", "command")]


class Results:
    """What is known so far, written to the file whenever it grows."""

    def __init__(self, path: Path | None, asked: Sequence[str], device: str) -> None:
        self.path = path
        place = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        self.content: dict[str, Any] = {"device": device, **place, "parts": {}}
        for name in asked:
            self.content["parts"][name] = {"state": "waiting", "seconds": 0.0, "rows": []}
        self.write()

    def set(self, name: str, **fields: Any) -> None:
        """Change what is said of a part."""
        self.content["parts"][name] |= fields
        self.write()

    def add(self, name: str, rows: Sequence[Row]) -> None:
        """More rows of a part."""
        if rows:
            self.content["parts"][name]["rows"] += rows
            self.write()

    def write(self) -> None:
        """The whole file, in place of the one before."""
        if self.path is not None:
            write_text(self.path, json.dumps(finite(self.content), indent=1))


def finite(value: Any) -> Any:
    """With None in place of numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -------------------- processes


class Worker:
    """A process that has imported what parts need, and waits to be told which one it is."""

    command = (sys.executable, "-m", "tests.benchmarks.gpu", "--worker")

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / f"{number}.jsonl"
        self.path.touch()
        self.read_to = 0
        # a group of its own: what it starts, as the compiler's processes, ends with it
        self.process = subprocess.Popen(
            [*self.command, str(self.path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            text=True,
            preexec_fn=os.setpgrp,
            env=worker_environment(),
        )

    def go(self, name: str, device: str, tiny: bool, seconds: float) -> None:
        """Start the part."""
        self.name, self.began, self.seconds = name, time.monotonic(), seconds
        self.imported = False
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died while importing: its status says so
            self.process.stdin.write(json.dumps({"name": name, "device": device, "tiny": tiny, "seconds": seconds}))
            self.process.stdin.close()

    def rows(self) -> list[Row]:
        """Those that are new; a line that is still being written waits."""
        with open(self.path, encoding="utf-8") as file:
            file.seek(self.read_to)
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self.read_to += len(whole.encode())
        rows = [json.loads(line) for line in whole.splitlines()]
        if rows and not self.imported:  # the first says that the part begins now
            self.imported, self.began = True, time.monotonic()
            rows = rows[1:]
        return rows

    @property
    def is_over(self) -> bool:
        """Whether its time is: its own, or that of importing."""
        return time.monotonic() - self.began > (self.seconds + GRACE if self.imported else IMPORTING)

    def end(self) -> None:
        """Kill it and all that it started, if anything of it is left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


def worker_environment() -> dict[str, str]:
    """One root for modules, no progress bars, tracebacks of the command line."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "LIT_CONSISTENCY_TRACEBACK": "1"}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **own, **quiet}


def run(results: Results, order: Sequence[Sequence[str]], device: str, tiny: bool, deadline: float) -> None:
    """All parts, group after group, until the deadline."""
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), list[Worker]()

        def more(n: int) -> list[Worker]:
            new = [Worker(folder, len(started) + i) for i in range(n)]
            started.extend(new)
            return new

        try:
            ready = more(len(order[0])) if order else []
            for group, following in zip(order, [*order[1:], []], strict=True):
                left = deadline - time.monotonic()
                if left < LEAST:
                    for part in group:
                        results.set(part, state="skipped", why=f"{max(left, 0):.0f} s of the whole are left")
                    continue
                workers, ready = ready, more(len(following))
                for worker, part in zip(workers, group, strict=True):
                    worker.go(part, device, tiny, min(PARTS[part].seconds, left - GRACE))
                    results.set(part, state="running")
                watch(results, workers)
        finally:
            for worker in started:
                worker.end()


def watch(results: Results, workers: Sequence[Worker]) -> None:
    """Take the rows of parts that run side by side, until the last has ended or been stopped."""
    running = list(workers)
    while running:
        time.sleep(0.1)
        for worker in list(running):
            status = worker.process.poll()
            results.add(worker.name, worker.rows())
            if status is None and not worker.is_over:
                continue
            took = time.monotonic() - worker.began
            running.remove(worker)
            worker.end()
            results.add(worker.name, worker.rows())
            state, why = {None: ("stopped", f"its {worker.seconds:.0f} s are over"), 0: ("done", None)}.get(
                status, ("failed", f"its process ended with status {status}")
            )
            results.set(worker.name, state=state, why=why, seconds=took)
            print(f"--- {worker.name}: {state} after {took:.0f} s", flush=True)


def work(path: Path, told: IO[str]) -> int:
    """A worker: import, wait to be told the part, write its rows; 1 where it fails, with the traceback as a row."""
    from tests.benchmarks.on_gpu.place import Place

    functions = {name: function_of(part) for name, part in PARTS.items()}
    line = told.read()
    if not line:  # whoever started this has ended
        return 0
    job = json.loads(line)
    with open(path, "a", encoding="utf-8") as file:
        print(json.dumps({"begins": job["name"]}), file=file, flush=True)
        place = Place(job["device"], job["tiny"], time.monotonic() + job["seconds"])
        return write_rows(functions[job["name"]](place), file)


def function_of(part: Part) -> Any:
    """The part's function."""
    import importlib

    return getattr(importlib.import_module(f"tests.benchmarks.on_gpu.{part.module}"), part.function)


def write_rows(rows: Iterator[Row], file: IO[str]) -> int:
    """A line of JSON for every row, as it comes."""
    status = 0
    try:
        for row in rows:
            print(json.dumps(finite(row), default=str), file=file, flush=True)
    except Exception:
        print(json.dumps({"error": traceback.format_exc()}), file=file, flush=True)
        status = 1
    return status


# -------------------- what is printed


def report(content: dict[str, Any]) -> str:
    """A table for every part, then all bars, then what is missing."""
    lines: list[str] = []
    bars: list[Row] = []
    missing: list[str] = []
    for name, part in content["parts"].items():
        bars += [row for row in part["rows"] if "bar" in row]
        rows = [row for row in part["rows"] if "bar" not in row and "error" not in row and "skipped" not in row]
        if rows:
            lines += [f"\n{name} ({part['seconds']:.0f} s)", table(rows)]
        for row in part["rows"]:
            if problem := row.get("error") or row.get("skipped"):
                labels = ", ".join(str(value) for key, value in row.items() if key not in ("error", "skipped"))
                kind = "ERROR" if "error" in row else "skipped"
                missing.append(f"{kind} {name} {labels}: {problem.strip().splitlines()[-1]}")
        if part["state"] != "done":
            missing.append(f"{part['state']} {name}: {part.get('why')}")
    lines += ["", *(f"{'met   ' if row['met'] else 'MISSED'} {row['bar']}" for row in bars)]
    return "\n".join([*lines, *missing]).strip()


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned text, with a column for every key that any of them has."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    lines = [header, *[[cell(row.get(key, "")) for key in header] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def cell(value: Any) -> str:
    """Four digits of a number."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return "-" if value is None else str(value)


def gpu_is_there() -> bool:
    """Whether a GPU can be used, asked without keeping it."""
    import torch

    return torch.cuda.is_available()


def stop(number: int, frame: FrameType | None) -> None:
    """On SIGTERM leave by the way on which processes are ended and tables printed."""
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for; 0 unless the call itself is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the numbers go, row by row")
    parser.add_argument("--seconds", type=float, default=450, help="for all of it")
    parser.add_argument("--only", help=f"parts, with commas between them: {','.join(PARTS)}")
    # a rehearsal where there is no GPU: every line but the device's own is run
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        return work(options.worker, sys.stdin)
    asked = options.only.split(",") if options.only else list(PARTS)
    if unknown := [name for name in asked if name not in PARTS]:
        parser.error(f"--only {','.join(unknown)}: expected some of {', '.join(PARTS)}")
    if options.device == "cuda" and not gpu_is_there():
        print("no GPU is at hand: nothing is measured")
        Results(options.json, [], "none")
        return 0
    deadline = time.monotonic() + options.seconds
    results = Results(options.json, asked, options.device)
    order = [[name for name in group if name in asked] for group in ORDER]
    before = signal.signal(signal.SIGTERM, stop)
    try:
        run(results, [group for group in order if group], options.device, options.tiny, deadline)
    except KeyboardInterrupt:
        for name, part in results.content["parts"].items():
            if part["state"] in ("waiting", "running"):
                results.set(name, state="stopped", why="by a signal")
    finally:
        signal.signal(signal.SIGTERM, before)
        print(report(finite(results.content)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
