"""A command without a Trainer on several devices: a process each, which share the work and know the same in the end.

The processes are torchrun's, or the first one starts the others on this machine. Whoever works together finds the
others in ``torch.distributed``; nothing else has to be told how many they are.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from lit_consistency.records.processes import bind_children, die_with_parent

KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells every process."""

GRACE = 10.0
"""Seconds in which a process that meets the same mistake as another says so itself."""


class Rank(NamedTuple):
    """This process among those that work together.

    Attributes:
        number: 0 for the first, which alone writes and says something.
        world_size: number of processes.
        device: as ``cpu`` or ``cuda:1``, or what was asked for where the process is alone.
    """

    number: int
    world_size: int
    device: str


def started_by_torchrun() -> bool:
    """Whether this process is one of several that were started together."""
    return all(key in os.environ for key in KEYS) and int(os.environ["WORLD_SIZE"]) > 1


def check_devices(devices: int, device: str) -> int:
    """Number of processes that the command starts or has been started in.

    Args:
        devices: how many are wanted; -1 takes all GPUs.
        device: ``auto``, ``cpu``, ``cuda``, or one by its number.

    Raises:
        ValueError: there are not so many, or the two do not go together.
    """
    if devices < 1 and devices != -1:
        raise ValueError(f"devices = {devices}: expected at least 1, or -1 for all GPUs")
    if started_by_torchrun():
        if devices != 1:
            raise ValueError(f"devices = {devices} under torchrun: expected 1; its processes are the devices")
        here, number = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ["WORLD_SIZE"])
    else:
        here = number = torch.cuda.device_count() if devices == -1 else devices
    if number == 1:
        return 1
    if ":" in device:
        raise ValueError(f"device = {device!r} with {number} processes: expected auto, cpu or cuda; each takes its own")
    if number == 0 or (_on_cuda(device) and here > torch.cuda.device_count()):
        raise ValueError(f"devices = {devices}: expected at most {torch.cuda.device_count()}, the GPUs here")
    return number


@contextmanager
def together(number: int, device: str, others: Callable[[], Any]) -> Iterator[Rank]:
    """Within, this process works with the others; behind it, it is alone again.

    Args:
        number: of processes, see ``check_devices``.
        device: ``auto``, ``cpu`` or ``cuda``.
        others: what the other processes of this machine do, where nobody has started them: the same command, which
            comes to this very place. It can be pickled.
    """
    if number == 1:
        yield Rank(0, 1, device)
        return
    started: list[BaseProcess] = []
    over = threading.Event()
    if started_by_torchrun():
        place = {key: os.environ[key] for key in KEYS}
    else:
        with socket.socket() as probe:  # a port that is free now
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        place = dict(zip(KEYS, ("0", str(number), "0", "127.0.0.1", port), strict=True))
        context = multiprocessing.get_context("spawn")
        for rank in range(1, number):
            own = bind_children(signal.SIGTERM, {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            started.append(context.Process(target=_run_as, args=(own, others), daemon=True))
            started[-1].start()
        threading.Thread(target=_end_with, args=(started, over), daemon=True).start()
    own_device = "cpu"
    if _on_cuda(device):
        own_device = f"cuda:{place['LOCAL_RANK']}"
        torch.cuda.set_device(own_device)  # on which collective calls with objects put them
    elif sys.platform == "linux" and place["MASTER_ADDR"] == "127.0.0.1":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's name may be that of no interface
    dist.init_process_group(
        "nccl" if _on_cuda(device) else "gloo",
        f"tcp://{place['MASTER_ADDR']}:{place['MASTER_PORT']}" if started else "env://",
        rank=int(place["RANK"]),
        world_size=number,
    )
    try:
        with _quiet(place["RANK"] != "0"):
            yield Rank(int(place["RANK"]), number, own_device)
        dist.barrier()  # nobody leaves while another may still ask
    finally:
        over.set()
        dist.destroy_process_group()
    for process in started:
        process.join()


def _on_cuda(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


@contextmanager
def _quiet(really: bool) -> Iterator[None]:
    """What the first process prints is said once."""
    if not really:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _run_as(place: dict[str, str], command: Callable[[], Any]) -> None:
    os.environ.update(place)
    die_with_parent()
    try:
        command()
    except (ValueError, OSError) as error:
        print(f"error of process {place['RANK']}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # which the first process answers
        sys.exit(130)


def _end_with(processes: list[BaseProcess], over: threading.Event) -> None:
    """End this process where one of the others has failed: it would wait for it in a collective call."""
    while not over.wait(0.5):
        failed = [process for process in processes if process.exitcode]
        if failed and not over.wait(GRACE):
            print(f"error: a process ended with status {failed[0].exitcode}, see above", file=sys.stderr, flush=True)
            for process in processes:
                process.terminate()
            os._exit(1)
