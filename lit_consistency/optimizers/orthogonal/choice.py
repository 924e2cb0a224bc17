"""Which form and precision of Newton-Schulz a block takes, and the stack of blocks that takes it.

Blocks whose short side is at most 256 follow a fixed rule, so that small runs are the same bits on every CPU. For
larger ones ``auto`` is measured at the first step: float32 against bfloat16 on a CPU, where some have bfloat16 in
hardware and some emulate it at a fifth of float32's speed, and the two forms on CUDA. What was measured is kept with
the optimizer's state, so that a resumed run takes the same.

Given up: a choice per batch size; the choice for a shape is measured once, with the first batch that comes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from lit_consistency.optimizers.core.workspace import Workspace
from lit_consistency.optimizers.orthogonal.newton_schulz import Coefficients, Form, add_newton_schulz_, newton_schulz

NSForm = Literal["auto", "direct", "gram"]
NSDtype = Literal["auto", "float32", "bfloat16"]
NS_FORMS = ("auto", "direct", "gram")
NS_DTYPES = ("auto", "float32", "bfloat16")
# Short side of a block up to which nothing is measured, and up to which a CPU works on stacks.
SMALL = 256
# Long over short side from which the Gram form needs fewer operations, symmetric products included.
GRAM_ASPECT = 1.5
# A measured sample is not longer than this on its short side: rates no longer change beyond.
SAMPLE = 1024
# bfloat16 must be this much faster than float32, because it is less exact.
WORTH = 1.2


class Choice(NamedTuple):
    """Form and precision of the iterations."""

    form: Form
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.form} {str(self.dtype).removeprefix('torch.')}"

    @classmethod
    def parse(cls, text: str) -> Choice:
        """The choice that ``str`` wrote."""
        form, dtype = text.split()
        return cls(cast(Form, form), getattr(torch, dtype))


def candidates(
    ns_form: NSForm, ns_dtype: NSDtype, shape: torch.Size, device: torch.device, dtype: torch.dtype
) -> list[Choice]:
    """What may be taken for blocks of (..., rows, columns), the most exact first; one where nothing is to be measured.

    Args:
        ns_form: what was asked for.
        ns_dtype: what was asked for.
        shape: of the stack.
        device: of the stack.
        dtype: of the stack; float64 stays float64.
    """
    short, long = sorted(shape[-2:])
    pays = long >= GRAM_ASPECT * short
    dtypes = [torch.float64] if dtype == torch.float64 else _dtypes(ns_dtype, short, device)
    if ns_form != "auto":
        forms: list[Form] = [ns_form]
    elif device.type == "cuda" and short > SMALL and pays and dtype != torch.float64:
        forms = ["direct", "gram"]
    else:
        forms = ["gram" if pays else "direct"]
    return [Choice(form, candidate) for candidate in dtypes for form in forms]


def _dtypes(ns_dtype: NSDtype, short: int, device: torch.device) -> list[torch.dtype]:
    if ns_dtype != "auto":
        return [getattr(torch, ns_dtype)]
    if device.type == "cuda":
        return [torch.bfloat16]
    return [torch.float32, torch.bfloat16] if device.type == "cpu" and short > SMALL else [torch.float32]


def key_of(shape: torch.Size, device: torch.device) -> str:
    """Name of a choice, e.g. ``cpu 768x3072``."""
    return f"{device.type} {shape[-2]}x{shape[-1]}"


def choose(
    choices: MutableMapping[str, str],
    ns_form: NSForm,
    ns_dtype: NSDtype,
    shape: torch.Size,
    device: torch.device,
    dtype: torch.dtype,
    agree: Callable[[int, torch.device], int],
) -> Choice:
    """The choice for a shape: the one on record, or the fastest of the candidates, which then goes on record.

    What is on record counts only while it is what is asked for: the options may change where a run is continued.

    Args:
        choices: key of ``key_of`` -> choice as text; grows.
        ns_form: see ``candidates``.
        ns_dtype: see ``candidates``.
        shape: (batch, rows, columns).
        device: of the blocks.
        dtype: of the blocks.
        agree: makes one rank's number every rank's; called by every rank or by none.
    """
    key = key_of(shape, device)
    possible = _by_text(ns_form, ns_dtype, shape, device, dtype)
    if choices.get(key) not in possible:
        best = 0 if len(possible) == 1 else agree(fastest([*possible.values()], shape, device), device)
        choices[key] = [*possible][best]
    return possible[choices[key]]


@functools.lru_cache(maxsize=1024)
def _by_text(
    ns_form: NSForm, ns_dtype: NSDtype, shape: torch.Size, device: torch.device, dtype: torch.dtype
) -> dict[str, Choice]:
    """``candidates`` by their texts; asked in every step, so the answer is kept."""
    return {str(choice): choice for choice in candidates(ns_form, ns_dtype, shape, device, dtype)}


def fastest(possible: list[Choice], shape: torch.Size, device: torch.device) -> int:
    """Place of the choice that a short measurement finds fastest; the first unless another is clearly faster."""
    # in turns, so that what else the machine does falls on all of them
    rounds = [[seconds(choice, shape, device) for choice in possible] for _ in range(2)]
    times = [min(found) for found in zip(*rounds, strict=True)]
    best = min(range(len(times)), key=times.__getitem__)
    return best if times[best] * WORTH < times[0] else 0


def seconds(choice: Choice, shape: torch.Size, device: torch.device) -> float:
    """Time on noise of that shape or a smaller one of the same aspect, the best of three; one iteration on a CPU."""
    short, long = sorted(shape[-2:])
    rows = min(short, SAMPLE)
    batch = shape[0] if device.type == "cuda" else 1
    # an own generator: the run's random numbers stay as they are
    generator = torch.Generator(device=device).manual_seed(0)
    sample = torch.randn(batch, rows, round(rows * long / short), generator=generator, device=device)
    step = _whole(sample, choice) if device.type == "cuda" else _one_iteration(sample[0], choice)
    best = float("inf")
    for _ in range(3):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def _whole(sample: Tensor, choice: Choice) -> Callable[[], object]:
    """All iterations, since the forms differ in what they do later."""
    stack = sample if sample.size(0) > 1 else sample[0]
    return lambda: newton_schulz(stack, ns_steps=5, form=choice.form, dtype=choice.dtype)


def _one_iteration(sample: Tensor, choice: Choice) -> Callable[[], object]:
    """In memory that is there, as in the steps to come: new memory costs as much as the products."""
    target, workspace = torch.empty_like(sample), Workspace()
    normalized = (sample / sample.norm()).to(choice.dtype)
    options: dict[str, Any] = {"ns_steps": 1, "ns_coefficients": "polar_express", "form": choice.form}
    return lambda: add_newton_schulz_(target, normalized, beta=0.0, alpha=1.0, workspace=workspace, **options)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def orthogonalize(stack: Tensor, choice: Choice, *, ns_steps: int, ns_coefficients: Coefficients) -> Tensor:
    """Newton-Schulz of a stack of blocks: compiled and batched on CUDA, one large block after the other on a CPU.

    Args:
        stack: (batch, rows, columns), only read.
        choice: form and precision.
        ns_steps: number of iterations.
        ns_coefficients: their polynomials.

    Returns:
        Of the stack's shape, in float32 or float64.
    """
    options: dict[str, Any] = {"ns_steps": ns_steps, "ns_coefficients": ns_coefficients}
    options |= {"form": choice.form, "dtype": choice.dtype}
    if stack.is_cuda:
        return _on_cuda(stack, options)
    if stack.size(0) > 1 and min(stack.shape[-2:]) <= SMALL:
        return newton_schulz(stack, **options)
    # larger products do not gain from a batch on a CPU, and symmetric ones are computed block by block in matrices
    if stack.size(0) == 1:
        return newton_schulz(stack[0], **options)[None]
    return torch.stack([newton_schulz(matrix, **options) for matrix in stack])


def _on_cuda(stack: Tensor, options: dict[str, Any]) -> Tensor:
    compiled = compiled_newton_schulz()
    if compiled is None:
        return newton_schulz(stack, **options)
    # one graph for each shape and choice; the limit of 8 would send the others back to Python
    with torch._dynamo.config.patch(recompile_limit=256):
        return compiled(stack, **options)


@functools.cache
def compiled_newton_schulz() -> Callable[..., Tensor] | None:
    """``newton_schulz`` as one graph for each shape, or None where there is no compiler for CUDA.

    No learning rate is among its arguments, so that none makes it compile anew.
    """
    from torch.utils._triton import has_triton

    return torch.compile(newton_schulz, dynamic=False) if has_triton() else None
