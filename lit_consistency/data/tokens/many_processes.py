"""A function over many batches in several processes: results in order, few batches in memory.

Hugging Face's tokenizers spread a batch over threads, but what stands around it in Python (JSON, prompts, templates,
the lists of tokens) runs in one of them, which from a handful of cores on is what all wait for. So the first batches
are done here, and where there are more, the others by forked processes, each with one thread; small data never pay for
them. Results are taken in the order of the batches, so what is written does not depend on the number of processes.
Where forks are not to be had (Windows) or not to be trusted (macOS), and on one core, all is done here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

from lit_consistency.records.processes import available_cores, die_with

A = TypeVar("A")
B = TypeVar("B")

DONE_HERE = 2
"""Batches before others are asked for help: a process is forked in a twentieth of a second, a batch takes about one."""
MOST = 64
"""Processes; one that reads and writes feeds about as many."""


def n_processes() -> int:
    """As many as there are cores for this process, or threads that the tokenizers' own variables allow."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("false", "0", "off", "no", "n", "f"):
        return 1
    threads = os.environ.get("RAYON_NUM_THREADS", "")
    return min(MOST, int(threads) if threads.isdigit() and int(threads) else available_cores())


def ordered_map(function: Callable[[A], B], batches: Iterable[A]) -> Iterator[B]:
    """Yields ``function(batch)`` of every batch, in their order.

    Args:
        function: Of one batch; what it returns is pickled.
        batches: Read as results are taken, at most two for each process ahead.

    Raises:
        RuntimeError: A process was killed, as by a lack of memory. What the function raises is raised here.
    """
    batches = iter(batches)
    for batch in islice(batches, DONE_HERE):
        yield function(batch)
    if (n := n_processes()) < 2 or sys.platform != "linux":
        yield from map(function, batches)
        return
    for batch in batches:  # there is one more
        yield from _forked(function, chain([batch], batches), n)


def _forked(function: Callable[[A], B], batches: Iterable[A], n: int) -> Iterator[B]:
    fork: Any = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(n, fork, _begin, (function, os.getpid()))
    pending: deque[Future[B]] = deque()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of threads, which a child does not use
            pool.submit(os.getpid)
        for batch in batches:
            pending.append(pool.submit(_call, batch))
            if len(pending) > 2 * n:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise RuntimeError(
            "a process that tokenizes was killed, perhaps for lack of memory; RAYON_NUM_THREADS=1 does it in one"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_function: Callable[[Any], Any]


def _begin(function: Callable[[Any], Any], parent: int) -> None:
    """In a new process: what it was forked with is its own, and it ends with whoever has forked it."""
    global _function
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads of tokenizers do not live on in a fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to take
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(parent, signal.SIGKILL)


def _call(batch: Any) -> Any:
    return _function(batch)
