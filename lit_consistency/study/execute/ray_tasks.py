"""Ray: one task an attempt, on a cluster that is there or on a new one on this machine.

Ray places tasks by CPUs and GPUs. What is done is known from the folders alone, so tasks have neither results nor
retries of Ray's: when a node dies, the lease of its jobs ends, they are interrupted, and run elsewhere by the rules of
``Retries``. A task runs the loop of all workers for one job; the server of processes, which has imported everything,
stays for the next task of the same Ray process.

A driver that is killed takes its tasks with it, without time to save; after a signal they save. Given up: clusters
through Ray's client (``ray://``), and waiting for nodes that an autoscaler would add for a job that fits on none now.
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from lit_consistency.records.extras import require
from lit_consistency.records.processes import available_cores
from lit_consistency.study.execute.follower import LOOK_AGAIN, Driver
from lit_consistency.study.execute.forkserver import GRACE
from lit_consistency.study.execute.local import Entry, LocalProcesses, ProcessFailed
from lit_consistency.study.execute.options import Capacity, ExecutionOptions, RayOptions, check_jobs
from lit_consistency.study.execute.progress import ProgressReport, Throughput
from lit_consistency.study.execute.retries import Retries
from lit_consistency.study.execute.state import State, last_lines, read_attempts, signal_name
from lit_consistency.study.execute.worker import Worker
from lit_consistency.study.job import Job

POLL = 0.5
"""Seconds between two looks at signals."""
FRUITLESS = 3
"""Tasks of one job that may end before they begin it; after that something is wrong with the cluster."""


def execute_on_ray(
    jobs: Callable[[], Sequence[Job]], options: ExecutionOptions, entry: Entry, progress: ProgressReport
) -> dict[str, State]:
    """Have all jobs run on a cluster; the states in which they are left.

    Args:
        jobs: see ``Follower``.
        options: of the execution.
        entry: what runs a job's command.
        progress: says how far the jobs are.

    Raises:
        ValueError: Ray is absent, no cluster answers, a job fits on no node.
        ProcessFailed: tasks end before they begin their job.
        SystemExit: after a signal, with 128 plus its number, when all jobs have saved and ended.
    """
    require("ray", "engine = ray", "ray")
    with _cluster(options.ray):
        return RayDriver(jobs, options, entry, progress).run()


@contextmanager
def _cluster(options: RayOptions) -> Iterator[None]:
    """Connect, and leave; a cluster that was started here ends."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a study tells nobody of itself
    import ray

    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    variables = {"PYTHONPATH": os.pathsep.join(paths), **options.environment} if paths else dict(options.environment)
    new: dict[str, Any] = {"num_cpus": available_cores(), "include_dashboard": False} if options.address is None else {}
    try:
        ray.init(address=options.address or "local", runtime_env={"env_vars": variables}, log_to_driver=False, **new)
    except ConnectionError as error:
        raise ValueError(f"ray.address = {options.address}: no cluster answers there: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


class RayDriver(Driver):
    """Gives Ray a task for every job that is ready. Arguments as of ``execute_on_ray``."""

    def __init__(
        self, jobs: Callable[[], Sequence[Job]], options: ExecutionOptions, entry: Entry, progress: ProgressReport
    ) -> None:
        import ray

        self.ray = ray
        self.entry = entry
        self.time_limit = options.time_limit
        self.tasks: dict[Any, Job] = {}
        self._begun: dict[str, int] = {}
        self._fruitless: dict[str, int] = defaultdict(int)
        self._acted_upon = 0
        # a task is one attempt, and Ray's own retries would begin another behind our back
        self._run_job = ray.remote(max_retries=0, max_calls=0)(run_job)
        super().__init__(jobs, Retries(options.retries, options.retry_failed), progress)

    def _nodes(self) -> list[dict[str, float]]:
        """CPUs and GPUs of the nodes that live."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _checked(self, jobs: Sequence[Job]) -> dict[str, Job]:
        by_name = check_jobs(jobs)
        nodes = [(node.get("CPU", 0), node.get("GPU", 0)) for node in self._nodes()]
        for threads, devices in {(job.threads, job.devices) for job in jobs}:
            if not any(threads <= cpus and devices <= gpus for cpus, gpus in nodes):
                job = next(job for job in jobs if (job.threads, job.devices) == (threads, devices))
                known = ", ".join(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in sorted(set(nodes)))
                raise ValueError(
                    f"job {job.name}: threads = {threads}, devices = {devices:g}: expected what a node has: {known}"
                )
        return by_name

    def run(self) -> dict[str, State]:
        """See ``execute_on_ray``."""
        with self.progress, self._watching_signals():
            try:
                while self._step():
                    self._wait()
            finally:
                self._end_all()
        return self._states_at_the_end()

    def _step(self) -> bool:
        """Look at the folders and start what is ready; whether anything is left."""
        if self._signals:
            self._stop()
            return bool(self.tasks)
        if time.monotonic() - self._looked_at > LOOK_AGAIN:
            self._look()
        if self._list_again:
            self._list_jobs()
        given = {job.name for job in self.tasks.values()}
        for job in self.jobs.values():
            if job.name not in given and self._is_ready(job):
                self._start(job)
        self.progress.update(self.jobs, self.states, {})
        return bool(self.tasks) or any(self.states[name] is State.RUNNING for name in self.jobs)

    def _start(self, job: Job) -> None:
        # what ran out of memory gets a node of its own, on whose CPUs nothing else is placed
        alone = self.states[job.name] is State.OUT_OF_MEMORY
        cpus = max(node.get("CPU", 0) for node in self._nodes()) if alone else job.threads
        self._begun[job.name] = len(read_attempts(job.folder))
        task = self._run_job.options(num_cpus=cpus, num_gpus=job.devices, name=job.name)
        self.tasks[task.remote(job, self.entry, self.retries, self.time_limit, os.getcwd())] = job

    def _wait(self) -> None:
        """Until a task has ended, but not for long."""
        if not self.tasks:
            time.sleep(POLL)
            return
        done, _ = self.ray.wait(list(self.tasks), timeout=POLL)
        for task in done:
            job = self.tasks.pop(task)
            try:
                self.ray.get(task)
            except self.ray.exceptions.TaskCancelledError:
                pass
            except self.ray.exceptions.RayError as error:
                self._note_lost(job, error)
            self._look_at(job)

    def _note_lost(self, job: Job, error: Exception) -> None:
        """A task that died, with its node or by itself; the folder tells how far its job was."""
        text = last_lines(str(error))
        self.progress.say(f"{job.name}: its task was lost: {text.splitlines()[0] if text else type(error).__name__}")
        if len(read_attempts(job.folder)) > self._begun[job.name]:
            return
        self._fruitless[job.name] += 1
        if self._fruitless[job.name] >= FRUITLESS:
            raise ProcessFailed(
                f"{job.name}: {FRUITLESS} tasks ended before they began it; the last:\n{text}"
            ) from error

    # -------------------- ending

    def _stop(self) -> None:
        """The first signal lets jobs save and end, the second kills them."""
        if self._signals == self._acted_upon:
            return
        self._acted_upon = self._signals
        what = "save and stop; a second signal kills them" if self._signals == 1 else "are killed"
        self.progress.say(f"{signal_name(self.stopped_by)}: running jobs {what}")
        self._cancel(force=self._signals > 1)

    def _cancel(self, force: bool) -> None:
        for task in self.tasks:
            self.ray.cancel(task, force=force)  # without force an interrupt, on which the worker acts as on any signal

    def _end_all(self) -> None:
        """After an error here: let the jobs save, then end them."""
        for force in (False, True):
            self._cancel(force)
            self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=GRACE) if self.tasks else None


# -------------------- on the nodes


class _OneAttempt(Worker):
    """Runs a job once, if nobody else does; the driver decides what follows."""

    has_begun = False

    def _is_ready(self, job: Job) -> bool:
        return not self.has_begun and super()._is_ready(job)

    def _start(self, job: Job) -> None:
        self.has_begun = True
        super()._start(job)

    def _waits(self, elsewhere: bool) -> bool:
        return False


_servers: dict[tuple[Entry, str | None], LocalProcesses] = {}
"""Of this process of Ray, by what was run and the GPUs that it may see; they end with it."""


def run_job(job: Job, entry: Entry, retries: Retries, time_limit: float | None, folder: str) -> None:
    """One attempt at a job, as a task of Ray; how it ended stands in the job's folder.

    Args:
        job: whose needs are finished.
        entry: what runs its command.
        retries: whether it may run.
        time_limit: hours after which it is stopped; None for none.
        folder: in which relative paths begin.
    """
    os.chdir(folder)
    # Ray cancels by an interrupt, which a shell's background process, and all that it starts, ignores
    signal.signal(signal.SIGINT, signal.default_int_handler)
    key = (entry, os.environ.get("CUDA_VISIBLE_DEVICES"))
    processes = _servers.setdefault(key, LocalProcesses(entry))
    capacity = Capacity(ExecutionOptions(workers=1, threads=job.threads), place="the node")
    progress = ProgressReport(lambda line: None, Throughput())  # the driver says it
    with suppress(SystemExit):  # after a signal
        _OneAttempt(lambda: [replace(job, needs=())], processes, capacity, retries, progress, time_limit).run()
