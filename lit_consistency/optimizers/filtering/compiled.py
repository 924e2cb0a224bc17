"""MoFO's passes, compiled: one program for a kind of tensors, whatever their lengths.

With a compiler a sampled step reads and writes each tensor once, as fast as AdamW's fused kernel; without one it is
about four times as slow. An exact step has two passes, of which the first is ``native.py`` on a CPU. Given up:
bit-equality of the compiled step with the other, whose sums are rounded in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

from lit_consistency.optimizers.filtering.native import GRADS, exact_selection
from lit_consistency.optimizers.filtering.passes import Rule, means_pass, one_pass, param_pass
from lit_consistency.optimizers.filtering.threshold import EVERYWHERE, Threshold

# of the tensors a program is first run on: a compiler spreads work over threads and blocks by the size it sees first
TRIAL = 2**20


class Kind(NamedTuple):
    """What a program is made for, whatever the sizes of its tensors."""

    device: torch.device
    param: torch.dtype
    grad: torch.dtype
    state: torch.dtype
    rule: Rule


@cache
def compiled_one_pass(kind: Kind) -> Callable[..., Any]:
    """``one_pass``, compiled and run once on zeros, so that a failing compiler touches nothing.

    Raises:
        Exception: of the compiler.
    """
    param, grad, mean, square, coefficients, threshold, offset, key = _trial(kind)
    return _compiled(one_pass, param, grad, mean, square, coefficients, threshold, offset, key, kind.rule)


class TwoPasses(NamedTuple):
    """What makes an exact step of a block."""

    means: Callable[..., Any] | None  # ``means_pass``; None where ``select`` moves the momentum, which is the score
    select: Callable[..., Threshold] | None  # see native.py; None on other devices than a CPU
    param: Callable[..., Any]  # ``param_pass``


@cache
def compiled_two_passes(kind: Kind) -> TwoPasses:
    """The programs of an exact step, likewise.

    Raises:
        Exception: of the compiler.
    """
    param, grad, mean, square, coefficients, threshold, offset, key = _trial(kind)
    means, select = None, None
    in_one_pass = kind.device.type == "cpu" and kind.rule.ranks_momentum and kind.grad in GRADS
    if kind.device.type == "cpu":
        select = exact_selection(kind.state, kind.grad if in_one_pass else None)
    if not in_one_pass:
        scores = torch.zeros_like(mean)
        means = _compiled(means_pass, grad, mean, square, coefficients, offset, key, scores, kind.rule)
    numbers = (coefficients, threshold, offset, key)
    return TwoPasses(means, select, _compiled(param_pass, param, grad, mean, square, *numbers, kind.rule))


def _compiled(function: Callable[..., Any], *trial: Any) -> Callable[..., Any]:
    """The function, compiled for all arguments like those of the trial, whatever the length of flat tensors."""
    # a code object of its own for every kind: torch refuses to compile one code object more than eight times
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__)
    own.__kwdefaults__ = function.__kwdefaults__
    # slow to import, and of no use where nothing is compiled
    from torch._dynamo import lookup_backend

    runs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def backend(graph: GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        run = lookup_backend("inductor")(graph, examples)

        def first_run(*arguments: Any) -> Any:
            runs.append((run, arguments))
            return run(*arguments)

        return first_run

    program = torch.compile(own, dynamic=True, fullgraph=True, backend=backend)
    program(*trial)
    run, arguments = runs[-1]
    runs.clear()
    return (_past_guards(run, arguments, trial) if trial[0].is_cpu else None) or program


def _past_guards(
    run: Callable[..., Any], arguments: tuple[Any, ...], trial: tuple[Any, ...]
) -> Callable[..., Any] | None:
    """Calls what was compiled without asking again whether it fits, which ``Kind`` says.

    In the middle of a step, with nothing of it in the cache, asking takes 0.3 ms: a third of the pass over a block of
    half a million coordinates.

    Args:
        run: the compiled graph.
        arguments: what it was given in the trial: some of the trial's tensors, lengths and other whole numbers.
        trial: arguments of the function.
    """
    names = [id(argument) for argument in _flat(trial)]
    places: list[int] = []
    for argument in arguments:
        if isinstance(argument, Tensor) and id(argument) in names:
            places.append(names.index(id(argument)))
        elif isinstance(argument, int):
            # behind what is given: the length, and numbers that stay
            places.append(len(names) + len(places) + 1 if argument != TRIAL else len(names))
        else:
            return None
    constants = [0 if isinstance(argument, Tensor) else argument for argument in arguments]

    def program(*given: Any) -> Any:
        flat = _flat(given)
        every = [*flat, len(flat[0]), *constants]
        return run(*[every[place] for place in places])

    return program


def _flat(arguments: tuple[Any, ...]) -> list[Any]:
    flat: list[Any] = []
    for argument in arguments:
        if isinstance(argument, Threshold):
            flat.extend(argument)
        else:
            flat.append(argument)
    return flat


def _trial(kind: Kind) -> tuple[Any, ...]:
    """Arguments of ``one_pass`` before the rule, to run a program on for the first time."""
    param, grad, mean, square = (
        torch.zeros(TRIAL, dtype=dtype, device=kind.device) for dtype in (kind.param, kind.grad, kind.state, kind.state)
    )
    low, high, coefficients = (torch.ones(shape, dtype=kind.state, device=kind.device) for shape in ((), (), (7,)))
    offset, key = (torch.zeros(shape, dtype=torch.int64, device=kind.device) for shape in ((), (2,)))
    return param, grad, mean, square, coefficients, Threshold(low, high, offset + EVERYWHERE), offset, key
