"""A command that behaves like a training run in milliseconds: ``python -m tests.study.execute.tiny fit ...``.

It continues from the step it has saved, saves at SIGTERM, and proves that nobody else works in its folder.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import resource
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from lit_consistency.records.atomic import write_json
from lit_consistency.records.run_folder import FINISHED, RunFolder

STEP = 0.02


class NonFiniteError(RuntimeError):
    """As a training run raises it."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--do", default="finish")
    parser.add_argument("--steps", type=int, default=1)
    options = parser.parse_args()
    folder: Path = options.folder
    lock = open(folder / "exclusive", "w")  # noqa: SIM115  held to the end of the process
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (folder / "twice").touch()
    run = RunFolder(folder)
    if run.is_finished:
        (folder / "again").touch()
    stopped: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.do == "hang" else note)
    if options.command == "fit":
        run.write_record({"status": "running"})
    print(f"began {options.do}")
    saved = folder / "step"
    step = int(saved.read_text()) if saved.is_file() and saved.read_text() else 0
    while step < options.steps:
        time.sleep(STEP)
        step += 1
        if stopped:
            saved.write_text(str(step))
            run.write_record({"status": "interrupted"})
            sys.exit(128 + stopped[0])
    act(options.do, folder)
    seen = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    write_json(folder / "seen.json", {**seen, "argv": sys.argv[1:], "main": vars(sys.modules["__main__"])["__name__"]})
    if options.command == "fit":
        run.write_record({"status": FINISHED, "steps": step, "final_metrics": {"loss": 1 / step}})


def act(do: str, folder: Path) -> None:
    """Whatever goes wrong."""
    before = (folder / "log.txt").read_text().count("--- attempt")
    if do == "abort":
        os.abort()
    elif do == "diverge":
        raise NonFiniteError("step 3: the loss is nan")
    elif do == "memory" or (do == "memory_once" and before == 1):
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        bytearray(1 << 31)
    elif do == "fail" or (do == "fail_once" and before == 1):
        raise KeyError("no such thing")
    elif do == "refuse":
        print("noise\nerror: key: no such\nsee --help", file=sys.stderr)
        sys.exit(2)
    elif do == "kill_once" and before == 1 or do == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif do in ("hang", "wait"):
        time.sleep(600)


if __name__ == "__main__":
    main()
