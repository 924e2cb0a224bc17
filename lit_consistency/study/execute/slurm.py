"""SLURM: an array of workers, each in an allocation of its own, submitted by submitit.

The driver writes a list of jobs (``Worklist``), asks for as many allocations as the jobs that are ready fill, and
follows the folders of the jobs; slurm's own record of what has ended is not asked. It asks again when allocations have
ended before the work has: by their time limit, by preemption, with their node. Workers leave when there is nothing to
do for them. Two minutes before an allocation ends its processes get SIGTERM, at which jobs save.

A driver that was killed leaves its workers behind, which go on; one that is started again on the same folder counts
them as its own. Given up: jobs on more than one node, and a driver on a machine that cannot submit.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_consistency.records.extras import require
from lit_consistency.records.fingerprints import fingerprint_of
from lit_consistency.study.execute.follower import LOOK_AGAIN, Driver
from lit_consistency.study.execute.local import Entry, ProcessFailed, end_of
from lit_consistency.study.execute.options import Capacity, ExecutionOptions, check_jobs
from lit_consistency.study.execute.progress import ProgressReport
from lit_consistency.study.execute.retries import Retries
from lit_consistency.study.execute.state import State, last_lines, read_attempts, signal_name
from lit_consistency.study.execute.worklist import Worklist
from lit_consistency.study.job import Job

POLL = 0.5
"""Seconds between two looks at signals."""
QUEUE_EVERY = 30.0
"""Seconds between two calls of squeue, which loads a controller that many share."""
ASK_EVERY = 60.0
"""Seconds between two submissions: a node on which every worker fails at once would take one after the other."""
FRUITLESS = 3
"""Submissions in a row of which no worker began a job, after which something is wrong with all of them."""
IDLE = 120.0
"""Seconds without a job after which a worker leaves: its place costs others more than the start of a new worker."""
TO_SAVE = 120
"""Seconds for saving: from SIGTERM to the end of an allocation."""
OF_AN_ALLOCATION = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_")
"""Variables that jobs do not see: by them Lightning would take a job for one of many ranks, and requeue the worker."""


@dataclass(frozen=True)
class Allocation:
    """As squeue lists it.

    Args:
        id: of the job in slurm, with its index in the array.
        state: as ``RUNNING``.
        reason: why it is pending.
    """

    id: str
    state: str
    reason: str

    @property
    def is_alive(self) -> bool:
        """Whether a worker works there, or will."""
        return self.state != "COMPLETING"


class SlurmDriver(Driver):
    """Keeps as many workers in slurm's queue as there is work for.

    Args:
        jobs: see ``Follower``.
        options: of the execution.
        folder: of the list, of slurm's scripts and of the workers' output; on all nodes, under the same path.
        entry: what runs a job's command.
        progress: says how far the jobs are.

    Raises:
        ValueError: submitit or slurm's commands are absent; a job that fits into no allocation.
    """

    def __init__(
        self,
        jobs: Callable[[], Sequence[Job]],
        options: ExecutionOptions,
        folder: Path,
        entry: Entry,
        progress: ProgressReport,
    ) -> None:
        require("submitit", "engine = slurm", "slurm")
        if absent := [command for command in ("sbatch", "srun", "squeue", "scancel") if not shutil.which(command)]:
            raise ValueError(f"engine = slurm: expected {', '.join(absent)} on this machine; none is there")
        self.options = options.slurm
        self.cpus = options.slurm.cpus or (options.workers or 1) * options.threads
        self.slots = options.workers or max(1, self.cpus // options.threads)
        self.threads, self.time_limit = options.threads, options.time_limit
        self.entry = entry
        self.folder = folder.absolute()
        self.name = f"study-{fingerprint_of(str(self.folder))[:12]}"
        self.file = self.folder / f"jobs-{uuid.uuid4().hex[:8]}.json"
        self.allocations: list[Allocation] = []
        self._asked_at = self._queue_read_at = float("-inf")
        self._fruitless = 0
        self._done_when_asked: tuple[int, int] | None = None
        self._said = ""
        self._log = self.folder
        super().__init__(jobs, Retries(options.retries, options.retry_failed), progress)

    def _checked(self, jobs: Sequence[Job]) -> dict[str, Job]:
        place = "an allocation (slurm.gpus)"
        options = ExecutionOptions(workers=self.slots, threads=self.threads, devices=list(range(self.options.gpus)))
        by_name = check_jobs(jobs, Capacity(options, place=place))
        if wide := next((job for job in jobs if job.threads > self.cpus), None):
            raise ValueError(
                f"job {wide.name}: threads = {wide.threads}: expected at most the {self.cpus} cores of an allocation "
                "(slurm.cpus)"
            )
        return by_name

    def run(self) -> dict[str, State]:
        """Have all jobs run; the states in which they are left.

        Raises:
            ValueError: slurm refuses the allocations.
            ProcessFailed: workers end as soon as they have begun.
            SystemExit: after a signal, with 128 plus its number, when all jobs have saved and ended.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_list()
        with self.progress, self._watching_signals():
            self._read_queue()
            if self.allocations:
                self.progress.say(f"{len(self.allocations)} workers of an earlier call are still there: {self._ids()}")
            try:
                while not self._signals and self._step():
                    time.sleep(POLL)
            except BaseException:
                self._cancel()
                raise
            if self._signals:
                self._stop()
            else:
                self._write_list(complete=True)  # workers leave
                self._read_queue()
                self._scancel([allocation for allocation in self.allocations if allocation.state == "PENDING"])
        return self._states_at_the_end()

    def _step(self) -> bool:
        """Look at the folders and at the queue; whether anything is left."""
        if time.monotonic() - self._looked_at > LOOK_AGAIN:
            self._look()
            self.progress.update(self.jobs, self.states, {})
        if self._list_again:
            self._list_jobs()
            self._write_list()
        ready = sum(map(self._is_ready, self.jobs.values()))
        running = sum(self.states[name] is State.RUNNING for name in self.jobs)
        if time.monotonic() - self._queue_read_at > QUEUE_EVERY:
            self._read_queue()
        alive = sum(allocation.is_alive for allocation in self.allocations)
        missing = min(self.options.nodes, math.ceil((ready + running) / self.slots)) - alive
        if ready and missing > 0 and time.monotonic() - self._asked_at > ASK_EVERY:
            self._read_queue()
            if alive == sum(allocation.is_alive for allocation in self.allocations):
                self._ask_for(missing, alive)
        return bool(ready or running)

    def _write_list(self, complete: bool = False) -> None:
        jobs = list(self.jobs.values())
        rules = (self.entry, self.retries, self.slots, self.threads, self.time_limit, os.getcwd(), IDLE)
        Worklist(jobs, *rules, complete).write(self.file)

    # -------------------- allocations

    def _ask_for(self, n: int, alive: int) -> None:
        """Submit workers."""
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        self._stop_if_fruitless(alive)
        executor = SlurmExecutor(folder=self.folder)
        executor.update_parameters(**self._parameters())
        try:
            with executor.batch():
                workers = [executor.submit(run_worker, str(self.file)) for _ in range(n)]
        except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
            if self._asked_at < 0:
                raise ValueError(f"engine = slurm: it refuses the allocations: {last_lines(str(error))}") from error
            self.progress.say(f"slurm takes no more allocations now, asking again: {last_lines(str(error))}")
            workers = []
        self._asked_at = time.monotonic()
        if workers:
            self._log = Path(workers[0].paths.stdout)
            self.progress.say(f"asked slurm for {n} x {self.cpus} cores: {', '.join(job.job_id for job in workers)}")
        self._read_queue()

    def _parameters(self) -> dict[str, object]:
        """Options of sbatch."""
        minutes = math.ceil(self.options.time * 60)
        given = {
            "job_name": self.name,
            "time": minutes,
            "nodes": 1,
            "ntasks_per_node": 1,
            "cpus_per_task": self.cpus,
            "gpus_per_node": self.options.gpus or None,
            "mem": self.options.memory,
            "partition": self.options.partition,
            "account": self.options.account,
            "array_parallelism": self.options.nodes,
            "stderr_to_stdout": True,
            "srun_args": [f"--cpus-per-task={self.cpus}"],  # not inherited from sbatch since slurm 22.05
            # submitit's own signal ends a process that does not know it
            "additional_parameters": {"signal": f"TERM@{TO_SAVE}", **self.options.parameters},
        }
        return {key: value for key, value in given.items() if value is not None}

    def _stop_if_fruitless(self, alive: int) -> None:
        """Workers that end before they begin a job would do so for ever."""
        finished = sum(self.states[name] is State.FINISHED for name in self.jobs)
        begun = sum(len(read_attempts(job.folder)) for job in self.jobs.values())
        if not alive:
            self._fruitless = self._fruitless + 1 if self._done_when_asked == (finished, begun) else 0
            self._done_when_asked = (finished, begun)
        if self._fruitless >= FRUITLESS:
            raise ProcessFailed(
                f"workers ended {FRUITLESS} times before they began a job; the end of {self._log}:\n"
                f"{last_lines(end_of(self._log))}"
            )

    def _read_queue(self) -> None:
        """Keep what slurm lists of this study; what it listed before, if it does not answer."""
        self._queue_read_at = time.monotonic()
        command = ["squeue", "--noheader", "--array", "--me", f"--name={self.name}", "--format=%i|%T|%r"]
        listed = _output(command)
        if listed is None:
            self._say_once("squeue does not answer; what it said last is taken to hold")
            return
        self.allocations = [Allocation(*line.strip().split("|", 2)) for line in listed.splitlines() if line.strip()]
        pending = [allocation for allocation in self.allocations if allocation.state == "PENDING"]
        if pending and len(pending) == len(self.allocations):
            self._say_once(f"all {len(pending)} allocations wait in slurm's queue: {pending[0].reason}")

    def _say_once(self, line: str) -> None:
        if line != self._said:
            self.progress.say(line)
        self._said = line

    def _ids(self) -> str:
        return ", ".join(allocation.id for allocation in self.allocations)

    # -------------------- ending

    def _stop(self) -> None:
        """The first signal lets jobs save and end, the second cancels the allocations."""
        self.progress.say(
            f"{signal_name(self.stopped_by)}: running jobs save and stop; a second signal cancels their allocations"
        )
        self._read_queue()
        self._scancel([allocation for allocation in self.allocations if allocation.state == "PENDING"])
        self._scancel([a for a in self.allocations if a.state != "PENDING"], "--signal=TERM")
        end = time.monotonic() + TO_SAVE
        while self.allocations and self._signals == 1 and time.monotonic() < end:
            time.sleep(4 * POLL)
            self._read_queue()
        self._cancel()

    def _cancel(self) -> None:
        """End all workers of this study, and wait until slurm has."""
        self._read_queue()
        self._scancel(self.allocations)
        end = time.monotonic() + TO_SAVE
        while self.allocations and time.monotonic() < end:
            time.sleep(4 * POLL)
            self._read_queue()

    def _scancel(self, allocations: Sequence[Allocation], *options: str) -> None:
        if allocations:
            _output(["scancel", *options, *(allocation.id for allocation in allocations)])


def run_worker(file: str) -> int:
    """Work off a list, in an allocation; the worker's exit status."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(OF_AN_ALLOCATION)}
    command = [sys.executable, "-m", "lit_consistency.study.execute.worklist", file]
    return subprocess.call(command, env=environment)


def _output(command: Sequence[str]) -> str | None:
    """What a command of slurm prints; None if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
