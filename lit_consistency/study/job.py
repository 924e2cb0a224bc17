"""One cell of a study as something to run: a command of this package, its folder, and what must be finished before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """A command that fills one folder, once.

    Args:
        name: of the cell, and of its folder.
        folder: what the command fills; a run's folder, or that of an evaluation.
        argv: command and options of ``python -m lit_consistency``.
        needs: names of the jobs that must be finished before this one starts.
        threads: processor threads of the process, because another number gives other last bits.
        devices: GPUs of the process, of which a part is a share; 0 for none.
        stage: of the study, for progress and logs.
    """

    name: str
    folder: Path
    argv: tuple[str, ...]
    needs: tuple[str, ...] = ()
    threads: int = 1
    devices: float = 0.0
    stage: str = ""
