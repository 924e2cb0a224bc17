"""Processes by numbers that mean what they meant, and children that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from contextlib import suppress
from pathlib import Path

PARENT = "LIT_CONSISTENCY_PARENT"
"""Environment variable by which a process tells its children to die with it: its number and that of the signal."""
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def this_host() -> str:
    """Name, start of the system and namespace of processes: where a process number means what it means here."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # containers of one host count their processes apart
    return " ".join(parts)


def is_first_here() -> bool:
    """Whether this process is the first of a run on its machine, which does what one does for all."""
    # set by Lightning and torchrun, or by srun
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def available_cores() -> int:
    """Cores that this process may use: those of its SLURM task or its affinity, not all of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_of(pid: int) -> str | None:
    """When a process started, in words that no later process of this number has; None if it is dead."""
    try:
        # the name, in parentheses, may hold anything; then: state, parent, ..., the start as the 20th (proc(5))
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _answers(pid)
    return None if fields[0] in "ZX" else fields[19]


def _answers(pid: int) -> str | None:
    """Whether a process of this number lives, where there is no /proc to tell it from another."""
    if os.name == "nt":  # there os.kill ends the process, whatever the signal
        kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
        handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        kernel.CloseHandle(handle)
        return "" if handle else None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


# -------------------- dying with the parent


def bind_children(number: int, environment: dict[str, str] | None = None) -> dict[str, str]:
    """Have commands of this package that this process starts from now on die with it (on Linux).

    Args:
        number: signal that they get when this process has died.
        environment: of the children, where it is not this process's own.

    Returns:
        The environment, with what ``die_with_parent`` reads.
    """
    target = os.environ if environment is None else environment
    target[PARENT] = f"{os.getpid()} {int(number)}"
    return target  # type: ignore[return-value]


def die_with_parent() -> None:
    """Ask the kernel for the signal that the parent has chosen; for SIGTERM if ``torchrun`` has started this process.

    An orphan goes on writing where the rerun writes too. SIGTERM lets a run save: under ``torchrun`` all ranks get it.
    """
    parent, _, number = os.environ.pop(PARENT, "").partition(" ")
    if not parent and "TORCHELASTIC_RUN_ID" in os.environ:
        parent, number = str(os.getppid()), str(signal.SIGTERM.value)
    if parent.isdigit() and number.isdigit():
        die_with(int(parent), int(number))


def die_with(parent: int, number: int) -> None:
    """Ask the kernel, where it is Linux, for a signal to this process when its parent dies."""
    if sys.platform != "linux":
        return
    if os.getppid() != parent:
        if start_of(parent) is None:  # it died before it could be watched
            os.kill(os.getpid(), number)
        return  # started by way of another process, which is not watched
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os.kill(os.getpid(), number)
