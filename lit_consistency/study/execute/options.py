"""How a study is executed: the options of the command line, checked when they are made."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lit_consistency.records.processes import available_cores
from lit_consistency.study.job import Job

SMALLEST_SHARE = 1e-6
"""Of a GPU; what is left below it is the rounding of sums of shares."""
SHORTEST_ALLOCATION = 1 / 12
"""Hours: slurm counts in minutes, may send its signal one early, and two of five are for saving."""
SET_BY_ENGINE = (
    *("account", "array", "cpus-per-task", "error", "gpus-per-node", "job-name", "mem", "nodes", "ntasks"),
    *("ntasks-per-node", "open-mode", "output", "partition", "signal", "time", "wckey"),
)
"""Options of sbatch that the engine sets, or that have a key of their own."""


@dataclass
class SlurmOptions:
    """What the engine ``slurm`` asks for: so many allocations, in each of which one worker runs jobs side by side.

    Args:
        nodes: allocations at a time, at most; each is on one node. Fewer are asked for when fewer jobs are ready.
        time: hours of an allocation. Jobs save before it ends, and continue in the next one.
        cpus: cores of an allocation; by default as many as ``workers`` and ``threads`` need.
        gpus: GPUs of an allocation, which its jobs share.
        memory: of an allocation, as ``64G``; by default the cluster's.
        partition: by default the cluster's.
        account: by default yours.
        parameters: any other options of sbatch by their long names, as ``{constraint: a100, qos: long}``.
    """

    nodes: int = 1
    time: float = 12.0
    cpus: int | None = None
    gpus: int = 0
    memory: str | None = None
    partition: str | None = None
    account: str | None = None
    parameters: dict[str, str | int | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value, lowest in (("nodes", self.nodes, 1), ("cpus", self.cpus, 1), ("gpus", self.gpus, 0)):
            if value is not None and value < lowest:
                raise ValueError(f"slurm.{key} = {value}: expected at least {lowest}")
        if not self.time >= SHORTEST_ALLOCATION:
            least = f"{SHORTEST_ALLOCATION:.2g}"
            raise ValueError(
                f"slurm.time = {self.time}: expected hours, at least {least}, so that there is time to save"
            )
        for key in self.parameters:
            name = key.replace("_", "-")
            if name in SET_BY_ENGINE:
                raise ValueError(f"slurm.parameters: {key}: expected none of {', '.join(SET_BY_ENGINE)}")
            if not re.fullmatch("[a-z][a-z-]*", name):
                raise ValueError(f"slurm.parameters: {key}: expected the long name of an option of sbatch, as qos")


@dataclass
class RayOptions:
    """Where the engine ``ray`` runs. A job takes ``threads`` of a node's CPUs, and its GPUs or its share of one.

    Args:
        address: of an existing cluster, as ``10.0.0.1:6379``, seen from one of its nodes; ``auto`` for the one that
            runs on this machine; by default a new one on this machine alone.
        environment: variables of the jobs. Nodes have what they were started with, and PYTHONPATH of this call.
    """

    address: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.address is not None and not re.fullmatch(r"auto|[^\s/]+:\d+", self.address):
            raise ValueError(f"ray.address = {self.address}: expected HOST:PORT, auto, or none for a new cluster here")


@dataclass
class ExecutionOptions:
    """Where and how the jobs of a study run. No number in a table depends on any of it but on ``threads``.

    Args:
        engine: ``local`` runs on this machine; ``slurm`` and ``ray`` on others that share its folders under the same
            paths, by the same Python.
        workers: jobs at a time on a machine, or in an allocation; by default as many as its cores have room for. Ray
            goes by ``threads`` alone.
        threads: processor threads of a job.
        devices: GPUs to use, by number or identifier; by default those of CUDA_VISIBLE_DEVICES, or else all. Of this
            machine only: slurm and ray give jobs theirs.
        retries: how often a job that failed by its own fault is run again.
        retry_failed: run again what failed or ran out of memory before this call; what diverged would diverge again.
        time_limit: hours after which a job is stopped and has failed; by default none.
        slurm: of the engine ``slurm``.
        ray: of the engine ``ray``.
    """

    engine: Literal["local", "slurm", "ray"] = "local"
    workers: int | None = None
    threads: int = 1
    devices: list[int | str] | None = None
    retries: int = 0
    retry_failed: bool = False
    time_limit: float | None = None
    slurm: SlurmOptions = field(default_factory=SlurmOptions)
    ray: RayOptions = field(default_factory=RayOptions)

    def __post_init__(self) -> None:
        least = [("workers", self.workers, 1), ("threads", self.threads, 1), ("retries", self.retries, 0)]
        for key, value, lowest in least:
            if value is not None and value < lowest:
                raise ValueError(f"{key} = {value}: expected at least {lowest}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"time_limit = {self.time_limit}: expected hours above 0")
        names = self.device_names or []
        if twice := sorted({device for device in names if names.count(device) > 1}):
            raise ValueError(f"devices = {names}: {twice[0]} is there twice; expected every GPU once")
        if self.engine != "local" and names:
            raise ValueError(
                f"devices = {names}: expected none with engine = {self.engine}, which gives jobs their GPUs"
            )
        if self.engine == "ray" and self.workers is not None:
            raise ValueError(f"workers = {self.workers}: expected none with engine = ray, which goes by threads")
        room = (self.workers or 1) * self.threads
        if self.engine == "slurm" and self.slurm.cpus is not None and self.slurm.cpus < room:
            raise ValueError(
                f"slurm.cpus = {self.slurm.cpus}: expected at least {room}, workers = {self.workers or 1} times "
                f"threads = {self.threads}"
            )

    @property
    def device_names(self) -> list[str] | None:
        """The GPUs as CUDA_VISIBLE_DEVICES names them."""
        return None if self.devices is None else [str(device) for device in self.devices]


def check_jobs(jobs: Sequence[Job], capacity: Capacity | None = None) -> dict[str, Job]:
    """The jobs by name.

    Raises:
        ValueError: a name or a folder is there twice, a need is no job or needs the job itself, a number of threads or
            GPUs is impossible.
    """
    by_name: dict[str, Job] = {}
    folders: dict[str, str] = {}
    for job in jobs:
        if job.name in by_name:
            raise ValueError(f"job {job.name}: is there twice; expected every name once")
        folder = os.path.abspath(job.folder)
        if folder in folders:
            raise ValueError(f"job {job.name}: {job.folder} is the folder of {folders[folder]} too; expected its own")
        if not job.argv:
            raise ValueError(f"job {job.name}: argv = (): expected a command")
        if job.threads < 1:
            raise ValueError(f"job {job.name}: threads = {job.threads}: expected at least 1")
        if job.devices < 0 or (job.devices > 1 and job.devices != int(job.devices)):
            raise ValueError(f"job {job.name}: devices = {job.devices}: expected a share of one, or a whole number")
        if capacity is not None and job.devices > len(capacity.free_devices):
            has = f"the {len(capacity.free_devices)} GPUs of {capacity.place}"
            raise ValueError(f"job {job.name}: devices = {job.devices}: expected at most {has}")
        by_name[job.name], folders[folder] = job, job.name
    _check_needs(by_name)
    return by_name


def _check_needs(jobs: dict[str, Job]) -> None:
    for job in jobs.values():
        if unknown := [need for need in job.needs if need not in jobs]:
            raise ValueError(f"job {job.name}: needs {unknown[0]!r}: expected the name of a job")
    waiting = {name: {*job.needs} for name, job in jobs.items()}
    dependents: dict[str, list[str]] = {name: [] for name in jobs}
    for name, needs in waiting.items():
        for need in needs:
            dependents[need].append(name)
    ready = [name for name, needs in waiting.items() if not needs]
    while ready:
        done = ready.pop()
        del waiting[done]
        for name in dependents[done]:
            waiting[name].discard(done)
            if not waiting[name]:
                ready.append(name)
    if waiting:
        raise ValueError(f"jobs {', '.join(sorted(waiting))}: need each other; expected an order in which they can run")


class Capacity:
    """What a machine has for jobs: cores, and shares of GPUs.

    Args:
        options: of the execution.
        cores: of the machine; by default those that this process may use.
        place: what it is called in errors.
    """

    def __init__(self, options: ExecutionOptions, cores: int | None = None, place: str = "this machine") -> None:
        self.place = place
        cores = available_cores() if cores is None else cores
        self.slots = options.workers or max(1, cores // options.threads)
        self.free_threads = self.slots * options.threads
        names = visible_devices() if options.device_names is None else options.device_names
        self.free_devices = dict.fromkeys(names, 1.0)
        self._taken: dict[str, tuple[int, dict[str, float]]] = {}

    def take(self, job: Job) -> list[str] | None:
        """Take what a job needs; the GPUs that it gets, or None when there is no room for it now."""
        # a job of more threads than there are runs alone
        if len(self._taken) >= self.slots or (job.threads > self.free_threads and self._taken):
            return None
        shares = self._shares(job.devices)
        if shares is None:
            return None
        self.free_threads -= job.threads
        for device, share in shares.items():
            self.free_devices[device] -= share
        self._taken[job.name] = (job.threads, shares)
        return list(shares)

    def give_back(self, job: Job) -> None:
        """The job has ended."""
        threads, shares = self._taken.pop(job.name)
        self.free_threads += threads
        for device, share in shares.items():
            self.free_devices[device] += share

    def _shares(self, devices: float) -> dict[str, float] | None:
        """GPU -> share; a part goes where the least is left, so that whole ones stay free."""
        if not devices:
            return {}
        if devices > 1:
            whole = [device for device, free in self.free_devices.items() if free > 1 - SMALLEST_SHARE]
            n = int(devices)
            return dict.fromkeys(whole[:n], 1.0) if len(whole) >= n else None
        fitting = {device: free for device, free in self.free_devices.items() if free > devices - SMALLEST_SHARE}
        return {min(fitting, key=fitting.__getitem__): devices} if fitting else None


def visible_devices() -> list[str]:
    """GPUs of NVIDIA that this process may use, without torch: its environment's, or all that the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip()]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()
