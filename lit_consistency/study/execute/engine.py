"""``execute``: run the jobs of a study where the options say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lit_consistency.study.execute.local import Entry, LocalProcesses
from lit_consistency.study.execute.options import Capacity, ExecutionOptions
from lit_consistency.study.execute.progress import ProgressReport, Throughput, print_line
from lit_consistency.study.execute.retries import Retries
from lit_consistency.study.execute.state import State
from lit_consistency.study.execute.worker import Worker
from lit_consistency.study.job import Job


def execute(
    jobs: Callable[[], Sequence[Job]],
    options: ExecutionOptions,
    say: Callable[[str], None] = print_line,
    entry: Entry | None = None,
) -> dict[str, State]:
    """Run all jobs that are not finished, and those that become known meanwhile.

    Args:
        jobs: lists all jobs that are known now, also those that are finished; asked again whenever one has finished.
        options: where and how.
        say: takes one line.
        entry: what runs a job's command; by default this package.

    Returns:
        The state of every job.

    Raises:
        ValueError: a job that cannot be run here, before any is run.
        SystemExit: after a signal, with 128 plus its number.
    """
    with LocalProcesses(entry or Entry()) as processes:
        worker = Worker(
            jobs,
            processes,
            Capacity(options),
            Retries(options.retries, options.retry_failed),
            ProgressReport(say, Throughput()),
            options.time_limit,
        )
        return worker.run()
