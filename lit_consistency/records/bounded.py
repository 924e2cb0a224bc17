"""What foreign files say is evaluated within bounds: a template or a regular expression may run without end.

Python's regular expressions and Jinja look for signals while they run, so an alarm ends them; memory is bounded by the
address space. Given up: both work where POSIX does, the alarm in the main thread alone. Elsewhere there is no bound.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

SECONDS = 10.0
HEADROOM = 1 << 30
"""Bytes beyond what the process has, for a text of some kilobytes."""


@contextlib.contextmanager
def bounded(what: str, seconds: float = SECONDS, headroom: int | None = None) -> Iterator[None]:
    """End what runs within after some seconds, or when it asks for too much memory.

    Args:
        what: is evaluated, as the error calls it.
        seconds: of wall time.
        headroom: bytes that may be added to the address space; None: no bound.

    Raises:
        ValueError: it took longer, or asked for more.
    """
    alarmed = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    with _address_space(headroom):
        before = signal.signal(signal.SIGALRM, _stop) if alarmed else None
        try:
            if alarmed:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            yield
        except _TooLongError:
            raise ValueError(f"{what}: not done in {seconds:g} seconds; expected one that ends") from None
        except MemoryError:
            raise ValueError(f"{what}: asks for too much memory") from None
        finally:
            if alarmed:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)


class _TooLongError(BaseException):
    """Passes by handlers of exceptions, as those of a template."""


def _stop(number: int, frame: Any) -> None:
    raise _TooLongError


@contextlib.contextmanager
def _address_space(headroom: int | None) -> Iterator[None]:
    if headroom is None or not os.path.exists("/proc/self/statm"):
        yield
        return
    import resource  # POSIX has it

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", "rb") as file:
        most = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + headroom
    least = min((limit for limit in (soft, hard, most) if limit != resource.RLIM_INFINITY), default=most)
    resource.setrlimit(resource.RLIMIT_AS, (least, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
