"""A driver as a process: ``python -m tests.study.execute.drive ROOT ENGINE NAME:DO:STEPS:NEED...``.

ENGINE is a number of local workers, ``slurm``, or ``ray=ADDRESS``. A job whose name ends in ``-gpu`` takes half of one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lit_consistency.study.execute import slurm
from lit_consistency.study.execute.engine import execute
from lit_consistency.study.execute.local import Entry
from lit_consistency.study.execute.options import ExecutionOptions, RayOptions, SlurmOptions
from lit_consistency.study.execute.progress import print_line
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


def engine_options(engine: str) -> ExecutionOptions:
    """Options by the word of the command line; slurm is asked as often as a machine of our own stands it."""
    if engine == "slurm":
        slurm.QUEUE_EVERY, slurm.ASK_EVERY, slurm.IDLE = 1.0, 3.0, 10.0
        return ExecutionOptions(engine="slurm", slurm=SlurmOptions(nodes=2))
    if engine.startswith("ray="):
        return ExecutionOptions(engine="ray", ray=RayOptions(engine.removeprefix("ray=")))
    return ExecutionOptions(workers=int(engine), devices=[])


def main() -> None:
    root, engine, *texts = sys.argv[1:]
    jobs = []
    for text in texts:
        name, do, steps, *needs = text.split(":")
        devices = 0.5 if name.endswith("-gpu") else 0.0
        jobs.append(tiny_job(Path(root), name, do, steps=int(steps), needs=needs, devices=devices))
    states = execute(lambda: jobs, engine_options(engine), print_line, TINY, Path(root) / "workers")
    sys.exit(any(state is not State.FINISHED for state in states.values()))


if __name__ == "__main__":
    main()
