"""The loop that all engines have in common: take the next job that is ready, run it, and write down how it ended.

What is done is known from the folders alone, so that any number of workers may share a study, on any number of hosts:
a worker leases a folder, reads its state again, and only then runs the command. It keeps no list of its own.
"""

from __future__ import annotations

import platform
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lit_consistency.records.lease import Lease, Renewal, is_live_here
from lit_consistency.study.execute.follower import LOOK_AGAIN, Follower
from lit_consistency.study.execute.forkserver import GRACE
from lit_consistency.study.execute.local import Ended, LocalProcesses, end_of
from lit_consistency.study.execute.options import Capacity, check_jobs
from lit_consistency.study.execute.progress import ProgressReport
from lit_consistency.study.execute.retries import Retries
from lit_consistency.study.execute.state import (
    LOG,
    Attempt,
    State,
    ended,
    oom_kills,
    read_attempts,
    signal_name,
    state_at_rest,
    write_attempts,
)
from lit_consistency.study.job import Job

POLL = 0.5
"""Seconds after which signals, limits and the bar are looked after, when no job ends before."""


@dataclass
class _Running:
    """A job that runs here."""

    job: Job
    lease: Lease
    log: Path
    attempts: list[Attempt]
    begun: float
    log_start: int
    memory_kills: int
    alone: bool
    beside: int = 0
    late: bool = False


class Worker(Follower):
    """Runs jobs on this machine until nothing is left to do.

    Args:
        jobs: lists all jobs that are known now, also those that are finished; asked again whenever one has finished.
        processes: start and watch the commands.
        capacity: what this machine has for them.
        retries: which jobs are run again.
        progress: says how far they are.
        time_limit: hours after which a job is stopped; None for none.

    Raises:
        ValueError: see ``check_jobs``.
    """

    def __init__(
        self,
        jobs: Callable[[], Sequence[Job]],
        processes: LocalProcesses,
        capacity: Capacity,
        retries: Retries,
        progress: ProgressReport,
        time_limit: float | None = None,
    ) -> None:
        self.processes = processes
        self.capacity = capacity
        self.time_limit = time_limit
        self._acted_upon = 0
        self._running: dict[int, _Running] = {}
        self._renewal = Renewal()
        super().__init__(jobs, retries, progress)

    def run(self) -> dict[str, State]:
        """Run all jobs; the states in which they are left.

        Raises:
            SystemExit: after a signal, with 128 plus its number, when all commands have saved and ended.
        """
        with self.progress, self._renewal, self._watching_signals():
            try:
                while self._step():
                    for end in self.processes.wait(POLL):
                        self._finish(end)
            finally:
                self._end_all()
        return self._states_at_the_end()

    def _step(self) -> bool:
        """Look after what runs and start what is ready; whether to go on."""
        if self._signals:
            self._stop()
            return bool(self._running)
        self._kill_lost()
        self._stop_late()
        here = self._here()
        elsewhere = any(state is State.RUNNING and name not in here for name, state in self.states.items())
        if time.monotonic() - self._looked_at > (LOOK_AGAIN if here else 2 * POLL):
            self._look()
        if self._list_again:
            self._list_jobs()
        self._start_ready()
        begun = {r.job.name: time.monotonic() - r.begun for r in self._running.values()}
        self.progress.update(self.jobs, self.states, begun)
        return bool(self._running) or any(map(self._is_ready, self.jobs.values())) or self._waits(elsewhere)

    def _waits(self, elsewhere: bool) -> bool:
        """Whether to stay though nothing is to be done here now.

        Args:
            elsewhere: whether another worker runs a job, after which there may be more to do.
        """
        return elsewhere

    def _checked(self, jobs: Sequence[Job]) -> dict[str, Job]:
        return check_jobs(jobs, self.capacity)

    def _here(self) -> set[str]:
        return {running.job.name for running in self._running.values()}

    # -------------------- starting

    def _start_ready(self) -> None:
        """Start as many as there is room for, in the order of the list; what runs alone when nothing else runs."""
        if any(running.alone for running in self._running.values()):
            return
        ready = [job for job in self.jobs.values() if self._is_ready(job)]
        for job in ready:
            if len(self._running) >= self.capacity.slots:
                return
            if not self._alone[job.name]:
                self._start(job)
        for job in ready:
            if self._alone[job.name] and not self._running and not self._others_here():
                self._start(job)

    def _others_here(self) -> int:
        """Jobs that other workers run on this host."""
        here = self._here()
        running = (job for job in self.jobs.values() if self.states[job.name] is State.RUNNING and job.name not in here)
        return sum(is_live_here(job.folder) for job in running)

    def _start(self, job: Job) -> None:
        """Take room and lease, read the state again, and start the command."""
        has_devices = bool(self.capacity.free_devices)
        devices = self.capacity.take(job)
        if devices is None:
            return
        lease = Lease.take(job.folder, [self.processes.server(job).pid])
        if lease is None:
            self.capacity.give_back(job)
            self.states[job.name], self._wanted[job.name] = State.RUNNING, False
            return
        self._note(job, state_at_rest(job.folder))
        if not self._wanted[job.name]:  # another worker was faster, and is done with it
            lease.release()
            self.capacity.give_back(job)
            self._list_again = True
            return
        attempts = [*read_attempts(job.folder), Attempt(job.argv[0], platform.node(), time.time())]
        write_attempts(job.folder, attempts)
        log = job.folder / LOG
        running = _Running(
            job,
            lease,
            log,
            attempts,
            begun=time.monotonic(),
            log_start=self._open_log(job, log, len(attempts)),
            memory_kills=oom_kills(),
            alone=self._alone[job.name],
        )
        pid = self.processes.start(job, log, devices if has_devices else None)
        self._renewal.add(lease)
        self._running[pid] = running
        self.states[job.name], self._wanted[job.name] = State.RUNNING, False
        others = self._others_here()
        for other in self._running.values():
            other.beside = max(other.beside, len(self._running) - 1 + others)
        if not pid:  # the server died just now
            self._finish(Ended(0, -signal.SIGKILL))

    def _open_log(self, job: Job, log: Path, n: int) -> int:
        """Head the attempt in the log; where its output starts."""
        with log.open("a", encoding="utf-8") as file:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"--- attempt {n}, {when}, {platform.node()}: {self.processes.entry.command(job)}\n")
            return file.tell()

    # -------------------- ending

    def _finish(self, end: Ended) -> None:
        """Write how a job ended, and give back what it had."""
        running = self._running.pop(end.pid)
        job, lost = running.job, running.lease in self._renewal.lost
        self._renewal.remove(running.lease)
        if lost:
            self.progress.say(f"{job.name}: another worker has taken it over, so it was stopped here")
            self._read(job)
        else:
            self._write_end(running, end)
            running.lease.release()
        self.capacity.give_back(job)

    def _write_end(self, running: _Running, end: Ended) -> None:
        job = running.job
        begun = replace(
            running.attempts[-1],
            pid=end.pid,
            ended=time.time(),
            beside=running.beside,
            cpu_seconds=round(end.cpu_seconds, 3),
        )
        said = end_of(running.log, running.log_start)
        killed = oom_kills() > running.memory_kills
        attempt = ended(begun, job.folder, status=end.status, said=said, killed_for_memory=killed)
        if running.late and attempt.state is not State.FINISHED:
            attempt = replace(attempt, state=State.FAILED, error=f"stopped after time_limit = {self.time_limit:g} h")
        attempts = [*running.attempts[:-1], attempt]
        write_attempts(job.folder, attempts)
        if attempt.state is State.INTERRUPTED and not self.stopped_by:
            self._interruptions[job.name] += 1
        self._note(job, attempt.state)
        if attempt.state is State.FINISHED:
            self.progress.throughput.add(job.stage, sum(attempt.seconds for attempt in attempts))
        else:
            self.progress.say(self._sentence(job, attempt))
        self._list_again = True

    def _kill_lost(self) -> None:
        """Stop what another worker has taken over: this host was away for too long."""
        for pid, running in self._running.items():
            if running.lease in self._renewal.lost:
                self.processes.signal(pid, signal.SIGKILL)

    def _stop_late(self) -> None:
        for pid, running in self._running.items():
            late = time.monotonic() - running.begun - (self.time_limit or float("inf")) * 3600
            if late > 0 and not running.late:
                running.late = True
                self.processes.signal(pid, signal.SIGTERM)
            elif late > GRACE:
                self.processes.signal(pid, signal.SIGKILL)

    # -------------------- signals

    def _stop(self) -> None:
        """The first signal lets the commands save and end, the second kills them."""
        number = signal.SIGTERM if self._signals == 1 else signal.SIGKILL
        if self._signals == self._acted_upon:
            return
        self._acted_upon = self._signals
        what = "save and stop; a second signal kills them" if number == signal.SIGTERM else "are killed"
        self.progress.say(f"{signal_name(self.stopped_by)}: {len(self._running)} running jobs {what}")
        for pid in self._running:
            self.processes.signal(pid, number)

    def _end_all(self) -> None:
        """After an error here: let the commands save, then end them."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + GRACE
            for pid in self._running:
                self.processes.signal(pid, number)
            while self._running and time.monotonic() < end:
                for ended_process in self.processes.wait(POLL):
                    self._finish(ended_process)
