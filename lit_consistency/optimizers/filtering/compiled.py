"""The passes of MoFO's step as compiled programs, one for each kind of tensors, whatever their sizes.

With a compiler the step reads and writes each tensor once, as fast as AdamW's fused kernel; without one it is about
four times as slow. Given up: bit-equality with the uncompiled step, whose sums are rounded in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import torch

from lit_consistency.optimizers.filtering.passes import Rule, moments_pass, one_pass, param_pass
from lit_consistency.optimizers.filtering.threshold import EVERYWHERE, Threshold

# of the tensors a program is first run on: a compiler spreads work over threads and blocks by the size it sees first
TRIAL = 2**20


class Kind(NamedTuple):
    """What a program is made for."""

    device: torch.device
    param: torch.dtype
    grad: torch.dtype
    state: torch.dtype
    rule: Rule


@cache
def compiled_one_pass(kind: Kind) -> Callable[..., None]:
    """``one_pass``, compiled and run once on zeros, so that a failing compiler touches nothing.

    Raises:
        Exception: of the compiler.
    """
    program = _compile(one_pass)
    param, grad, mean, square, numbers, threshold, offset, key = _trial(kind)
    program(param, grad, mean, square, numbers, threshold, offset, key, kind.rule)
    return program


@cache
def compiled_two_passes(kind: Kind) -> tuple[Callable[..., None], Callable[..., None]]:
    """``moments_pass`` and ``param_pass``, likewise."""
    first, second = _compile(moments_pass), _compile(param_pass)
    param, grad, mean, square, numbers, threshold, offset, key = _trial(kind)
    first(grad, mean, square, numbers, offset, key, torch.zeros_like(mean), kind.rule)
    second(param, grad, mean, square, numbers, threshold, offset, key, kind.rule)
    return first, second


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    # a code object of its own for every kind: torch refuses to compile one code object more than eight times
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__)
    own.__kwdefaults__ = function.__kwdefaults__
    return torch.compile(own, dynamic=True, fullgraph=True)


def _trial(kind: Kind) -> tuple[Any, ...]:
    param, grad, mean, square = (
        torch.zeros(TRIAL, dtype=dtype, device=kind.device) for dtype in (kind.param, kind.grad, kind.state, kind.state)
    )
    number = torch.ones((), dtype=kind.state, device=kind.device)
    offset, key = (torch.zeros(shape, dtype=torch.int64, device=kind.device) for shape in ((), (2,)))
    return (
        param,
        grad,
        mean,
        square,
        number.expand(7).clone(),
        Threshold(number, number, offset + EVERYWHERE),
        offset,
        key,
    )
