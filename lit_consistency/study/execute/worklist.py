"""A driver's list of jobs for its workers on other machines: ``python -m ... worklist FILE`` works it off.

The driver alone plans the study; it rewrites the file when jobs become known. A worker reads it again when it has
changed, and needs neither the study's file nor torch. All workers of a list share the time since when failures count
(``retry_failed``). A list outlives its driver: workers go on until all that stands on it is done.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_consistency.records.atomic import write_json
from lit_consistency.study.execute.local import Entry, LocalProcesses
from lit_consistency.study.execute.options import Capacity, ExecutionOptions
from lit_consistency.study.execute.progress import ProgressReport, Throughput, print_line
from lit_consistency.study.execute.retries import Retries
from lit_consistency.study.execute.worker import Worker
from lit_consistency.study.job import Job


@dataclass(frozen=True)
class Worklist:
    """What a worker has to know.

    Args:
        jobs: all that are known now.
        entry: what runs a job's command.
        retries: which jobs are run again.
        workers: jobs at a time.
        threads: of a job.
        time_limit: hours after which a job is stopped; None for none.
        folder: in which relative paths of the jobs begin.
        idle: seconds without a job after which a worker leaves.
        complete: whether no job will be added.
    """

    jobs: Sequence[Job]
    entry: Entry
    retries: Retries
    workers: int = 1
    threads: int = 1
    time_limit: float | None = None
    folder: str = ""
    idle: float = 0.0
    complete: bool = False

    def write(self, file: Path) -> None:
        """Write it whole, over an earlier one."""
        jobs = [{**asdict(job), "folder": str(job.folder)} for job in self.jobs]
        write_json(file, {**asdict(self), "jobs": jobs})

    @classmethod
    def read(cls, file: Path) -> Worklist:
        """What stands in the file."""
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        sequences = ("argv", "needs")
        jobs = [
            Job(**{**job, "folder": Path(job["folder"]), **{key: tuple(job[key]) for key in sequences}})
            for job in content["jobs"]
        ]
        entry = Entry(content["entry"]["module"], tuple(content["entry"]["preload"]))
        return cls(**{**content, "jobs": jobs, "entry": entry, "retries": Retries(**content["retries"])})


class ListWorker(Worker):
    """Works a list off until it is complete and done, or there has been nothing to do for a while.

    Args:
        file: of the list.
        worklist: what stands there now.
        processes: start and watch the commands.
        progress: says how far the jobs are.
    """

    def __init__(self, file: Path, worklist: Worklist, processes: LocalProcesses, progress: ProgressReport) -> None:
        self.file = file
        self._worklist = worklist
        self._busy_at = time.monotonic()
        capacity = Capacity(ExecutionOptions(workers=worklist.workers, threads=worklist.threads))
        super().__init__(self._read_jobs, processes, capacity, worklist.retries, progress, worklist.time_limit)

    def _read_jobs(self) -> Sequence[Job]:
        self._changed_at = self.file.stat().st_mtime_ns  # before reading: it may change again meanwhile
        self._worklist = Worklist.read(self.file)
        return self._worklist.jobs

    def _look(self) -> None:
        super()._look()
        self._list_again |= self.file.stat().st_mtime_ns != self._changed_at

    def _waits(self, elsewhere: bool) -> bool:
        if self._worklist.complete:
            return False
        idle = time.monotonic() - self._busy_at
        if idle > self._worklist.idle:
            self.progress.say(f"nothing to do for {idle:.0f} s; the driver asks for another worker when there is")
        return idle <= self._worklist.idle

    def _step(self) -> bool:
        if self._running:
            self._busy_at = time.monotonic()
        return super()._step()


def main() -> None:
    """Work off the list that the argument names."""
    file = Path(sys.argv[1]).absolute()
    worklist = Worklist.read(file)
    os.chdir(worklist.folder or ".")
    with LocalProcesses(worklist.entry) as processes:
        ListWorker(file, worklist, processes, ProgressReport(print_line, Throughput())).run()


if __name__ == "__main__":
    main()
