"""A driver as a process: ``python -m tests.study.execute.drive ROOT WORKERS NAME:DO:STEPS:NEED...``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lit_consistency.study.execute.engine import execute
from lit_consistency.study.execute.local import Entry
from lit_consistency.study.execute.options import ExecutionOptions
from lit_consistency.study.execute.state import State
from lit_consistency.study.job import Job

TINY = Entry("tests.study.execute.tiny", ("lit_consistency.records.run_folder",))


def tiny_job(
    root: Path,
    name: str,
    do: str = "finish",
    *,
    steps: int = 1,
    needs: Sequence[str] = (),
    command: str = "fit",
    threads: int = 1,
    devices: float = 0.0,
) -> Job:
    """A job of the tiny command."""
    folder = root / name
    argv = (command, f"--folder={folder}", f"--do={do}", f"--steps={steps}")
    return Job(name, folder, argv, tuple(needs), threads=threads, devices=devices, stage=command)


def run(jobs: Sequence[Job], said: list[str] | None = None, **options: object) -> dict[str, State]:
    """Execute tiny jobs in this process."""
    options = {"workers": 4, "devices": [], **options}
    say = print if said is None else said.append
    return execute(lambda: jobs, ExecutionOptions(**options), say, TINY)  # type: ignore[arg-type]


def main() -> None:
    root, workers, *texts = sys.argv[1:]
    jobs = []
    for text in texts:
        name, do, steps, *needs = text.split(":")
        jobs.append(tiny_job(Path(root), name, do, steps=int(steps), needs=needs))
    states = run(jobs, workers=int(workers))
    sys.exit(any(state is not State.FINISHED for state in states.values()))


if __name__ == "__main__":
    main()
