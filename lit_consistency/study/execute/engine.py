"""``execute``: run the jobs of a study where the options say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lit_consistency.study.execute.local import Entry, LocalProcesses
from lit_consistency.study.execute.options import Capacity, ExecutionOptions
from lit_consistency.study.execute.progress import ProgressReport, Throughput, print_line
from lit_consistency.study.execute.ray_tasks import execute_on_ray
from lit_consistency.study.execute.retries import Retries
from lit_consistency.study.execute.slurm import SlurmDriver
from lit_consistency.study.execute.state import State
from lit_consistency.study.execute.worker import Worker
from lit_consistency.study.job import Job


def execute(
    jobs: Callable[[], Sequence[Job]],
    options: ExecutionOptions,
    say: Callable[[str], None] = print_line,
    entry: Entry | None = None,
    folder: Path | None = None,
) -> dict[str, State]:
    """Run all jobs that are not finished, and those that become known meanwhile.

    Args:
        jobs: lists all jobs that are known now, also those that are finished; asked again whenever one has finished.
        options: where and how.
        say: takes one line.
        entry: what runs a job's command; by default this package.
        folder: for the lists and logs of workers on other machines, which share it; the engine ``slurm`` needs one.

    Returns:
        The state of every job.

    Raises:
        ValueError: a job that cannot be run there, before any is run; the engine's package is absent.
        SystemExit: after a signal, with 128 plus its number.
    """
    entry = entry or Entry()
    progress = ProgressReport(say, Throughput())
    if options.engine == "slurm":
        assert folder is not None
        return SlurmDriver(jobs, options, folder, entry, progress).run()
    if options.engine == "ray":
        return execute_on_ray(jobs, options, entry, progress)
    with LocalProcesses(entry) as processes:
        retries = Retries(options.retries, options.retry_failed)
        return Worker(jobs, processes, Capacity(options), retries, progress, options.time_limit).run()
