"""The loop that all engines have in common: take the next job that is ready, run it, and write down how it ended.

What is done is known from the folders alone, so that any number of workers may share a study, on any number of hosts:
a worker leases a folder, reads its state again, and only then runs the command. It keeps no list of its own.
"""

from __future__ import annotations

import platform
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lit_consistency.study.execute.forkserver import GRACE
from lit_consistency.study.execute.lease import Lease, Renewal, is_live_here
from lit_consistency.study.execute.local import Ended, LocalProcesses, end_of
from lit_consistency.study.execute.options import Capacity, check_jobs
from lit_consistency.study.execute.progress import ProgressReport
from lit_consistency.study.execute.retries import Retries
from lit_consistency.study.execute.state import (
    LOG,
    Attempt,
    State,
    ended,
    headline,
    oom_kills,
    read_attempts,
    seconds_of,
    signal_name,
    state_at_rest,
    state_of,
    write_attempts,
)
from lit_consistency.study.job import Job

POLL = 0.5
"""Seconds after which signals, limits and the bar are looked after, when no job ends before."""
LOOK_AGAIN = 5.0
"""Seconds between two looks at what other workers have done."""
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


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


class Worker:
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
        self._list = jobs
        self.processes = processes
        self.capacity = capacity
        self.retries = retries
        self.progress = progress
        self.time_limit = time_limit
        self.stopped_by = 0
        self.jobs: dict[str, Job] = {}
        self.states: dict[str, State] = {}
        self._wanted: dict[str, bool] = {}
        self._alone: dict[str, bool] = {}
        self._interruptions: dict[str, int] = defaultdict(int)
        self._running: dict[int, _Running] = {}
        self._renewal = Renewal()
        self._looked_at = time.monotonic()
        self._list_again = False
        self._signals = self._acted_upon = 0
        self._list_jobs()

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
        self._look()
        if self.stopped_by:
            raise SystemExit(128 + self.stopped_by)
        self._report_what_waits()
        return {name: self.states[name] for name in self.jobs}

    def _step(self) -> bool:
        """Look after what runs and start what is ready; whether to go on."""
        if self._signals:
            self._stop()
            return bool(self._running)
        self._kill_lost()
        self._stop_late()
        here = {running.job.name for running in self._running.values()}
        elsewhere = any(state is State.RUNNING and name not in here for name, state in self.states.items())
        if time.monotonic() - self._looked_at > (LOOK_AGAIN if here else 2 * POLL):
            self._look()
        if self._list_again:
            self._list_jobs()
        self._start_ready()
        begun = {r.job.name: time.monotonic() - r.begun for r in self._running.values()}
        self.progress.update(self.jobs, self.states, begun)
        return bool(self._running) or elsewhere or any(map(self._is_ready, self.jobs.values()))

    # -------------------- what there is to do

    def _list_jobs(self) -> None:
        self._list_again = False
        self.jobs = check_jobs(self._list(), self.capacity)
        for job in self.jobs.values():
            if job.name not in self.states:
                self._read(job)
                if self.states[job.name] is State.FINISHED:
                    self.progress.throughput.add(job.stage, seconds_of(job.folder), before=True)

    def _look(self) -> None:
        """Read the state of all jobs that others may have worked on."""
        here = {running.job.name for running in self._running.values()}
        for job in self.jobs.values():
            if job.name not in here and self.states[job.name] is not State.FINISHED:
                self._read(job)
                if self.states[job.name] is State.FINISHED:
                    self.progress.throughput.add(job.stage, seconds_of(job.folder))
                    self._list_again = True
        self._looked_at = time.monotonic()

    def _read(self, job: Job) -> None:
        self._note(job, state_of(job.folder))

    def _note(self, job: Job, state: State) -> None:
        """Keep the state of a job, and what follows from it."""
        attempts = read_attempts(job.folder) if state in (State.FAILED, State.OUT_OF_MEMORY) else []
        self.states[job.name] = state
        self._wanted[job.name] = self.retries.may_run(state, attempts, self._interruptions[job.name])
        self._alone[job.name] = self.retries.alone(state, attempts)

    def _is_ready(self, job: Job) -> bool:
        return self._wanted[job.name] and all(self.states[need] is State.FINISHED for need in job.needs)

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
        here = {running.job.name for running in self._running.values()}
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
            self.progress.say(self._sentence(job, attempt, running.log))
        self._list_again = True

    def _sentence(self, job: Job, attempt: Attempt, log: Path) -> str:
        again = ""
        if self._wanted[job.name] and not self.stopped_by:
            again = "; runs once more, alone" if self._alone[job.name] else "; runs once more"
        return f"{job.name}: {attempt.state} after {attempt.seconds:.0f} s{again}: {headline(attempt.error)} ({log})"

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

    @contextmanager
    def _watching_signals(self) -> Iterator[None]:
        """Note signals; they are acted upon between two steps, when no message to a process is half sent."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
            yield
            return
        numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
        # nohup has it ignored
        before = {n: handler for n in numbers if (handler := signal.getsignal(n)) is not signal.SIG_IGN}

        def note(number: int, frame: object) -> None:
            self._signals += 1
            self.stopped_by = self.stopped_by or number

        try:
            for number in before:
                signal.signal(number, note)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

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

    def _report_what_waits(self) -> None:
        """Name the jobs that were not run, by the job that they needed."""
        waiting = [job for job in self.jobs.values() if self.states[job.name] is State.MISSING]
        by_need: dict[str, list[str]] = defaultdict(list)
        for job in waiting:
            need = next((need for need in job.needs if self.states[need] is not State.FINISHED), "")
            by_need[need].append(job.name)
        for need, names in by_need.items():
            if need:
                self.progress.say(f"not run, because {need} is {self.states[need]}: {', '.join(names)}")
