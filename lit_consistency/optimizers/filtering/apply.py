"""How parameters move in a step of MoFO: compiled in one pass or two, or pass by pass.

Pass by pass, the parameter takes AdamW's whole step, and what was not chosen is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_consistency.optimizers.adamw import adamw_step
from lit_consistency.optimizers.core.workspace import Workspace
from lit_consistency.optimizers.filtering.blocks import (
    Block,
    ParameterStep,
    sampled_thresholds,
    sharded_exact_thresholds,
)
from lit_consistency.optimizers.filtering.passes import (
    Coefficients,
    Kind,
    compiled_one_pass,
    compiled_two_passes,
    indices,
    score,
)
from lit_consistency.optimizers.filtering.threshold import Threshold, number_kept, threshold_in_place


def move_sampled(compiled: Sequence[ParameterStep], eager: Sequence[ParameterStep], options: Mapping[str, Any]) -> None:
    """One step with thresholds from samples; all of one process group and one dtype.

    Args:
        compiled: parameters that a compiled program moves.
        eager: parameters that none does.
        options: ``lr``, ``betas``, ``eps``, ``weight_decay``.
    """
    if not compiled and not eager:
        return
    before = _take_whole_step(eager, options)
    sampled_thresholds([*compiled, *eager])
    for step in compiled:
        kind = kind_of(step)
        program = compiled_one_pass(kind)
        for block, threshold in zip(step.blocks, step.thresholds, strict=True):
            _run_on_block(program, kind, step, block, threshold)
        step.step.add_(1)
        step.means_updated = True
    for step, old in zip(eager, before, strict=True):
        _take_back_unselected(step, old)


def move_exactly(
    compiled: Sequence[ParameterStep],
    eager: Sequence[ParameterStep],
    options: Mapping[str, Any],
    workspace: Workspace,
) -> None:
    """One step with exactly K coordinates of each block, likewise; sharded parameters are all in ``eager``.

    ``workspace`` keeps the scores of the largest parameter from step to step.
    """
    if compiled:
        largest = max((step.exp_avg for step in compiled), key=len)
        cpu = largest.device.type == "cpu"
        scratch = workspace.take("scores", largest.shape, largest.dtype) if cpu else torch.empty_like(largest)
        for step in compiled:
            _move_in_two_passes(step, scratch)
    if eager:
        before = _take_whole_step(eager, options)
        sharded = eager[0].layout.group is not None
        (sharded_exact_thresholds if sharded else sampled_thresholds)(eager)
        for step, old in zip(eager, before, strict=True):
            _take_back_unselected(step, old)


def move_held(steps: Sequence[ParameterStep], options: Mapping[str, Any]) -> None:
    """One step of the coordinates that an earlier step has chosen."""
    for step, before in zip(steps, _take_whole_step(steps, options), strict=True):
        assert step.mask is not None
        _take_back(step, slice(None), before, step.mask)


# -------------------- compiled


def kind_of(step: ParameterStep) -> Kind:
    """The kind of compiled program that moves a parameter."""
    param, grad, mean, _ = step.tensors()
    # on a CPU a second call is cheaper than comparing indices, see _run_on_block
    rule = step.rule._replace(indexed=param.device.type != "cpu")
    return Kind(param.device, param.dtype, grad.dtype, mean.dtype, rule)


def _move_in_two_passes(step: ParameterStep, scratch: Tensor) -> None:
    """Means and scores, the exact threshold of the scores, then the parameter; block by block."""
    kind = kind_of(step)
    first, second = compiled_two_passes(kind)
    for block in step.blocks:
        begin, end = step.local_range(block)
        _, grad, mean, square = step.tensors(slice(begin, end))
        scores, offset = scratch[: end - begin], step.offset(begin)
        first(grad, mean, square, step.coefficients, offset, step.key, scores, kind.rule)

        def again(start: int, stop: int, begin: int = begin) -> Tensor:
            _, grad, mean, square = step.tensors(slice(begin + start, begin + stop))
            # only the random filter looks at the index
            index = indices(grad, step.offset(begin + start)) if step.rule.filter == "random" else step.key
            by = Coefficients(*step.coefficients.unbind())
            return score(step.rule.filter, grad, mean, square, by, index, step.key)

        kept = number_kept(step.fraction, end - begin)
        low, high, cut = threshold_in_place(scores, kept, step.rule.smallest, again)
        step.thresholds.append(Threshold(low, high, cut + offset))
        _run_on_block(second, kind, step, block, step.thresholds[-1])
    step.step.add_(1)
    step.means_updated = True


def _run_on_block(
    program: Callable[..., None], kind: Kind, step: ParameterStep, block: Block, threshold: Threshold
) -> None:
    """Run a compiled pass on a block, on each side of the index where ties end if the pass compares no indices."""
    begin, end = step.local_range(block)
    pieces = [(begin, end, threshold)]
    if not kind.rule.indexed:
        low, high, cut = threshold
        middle = min(end, max(begin, int(cut) - step.layout.begin))
        # beyond a number is from the next number on
        if step.rule.smallest:
            before, after = torch.nextafter(low, torch.full_like(low, -torch.inf)), high
        else:
            before, after = low, torch.nextafter(high, torch.full_like(high, torch.inf))
        pieces = [(begin, middle, Threshold(before, before, cut)), (middle, end, Threshold(after, after, cut))]
    for start, stop, limit in pieces:
        if start < stop:
            tensors = step.tensors(slice(start, stop))
            program(*tensors, step.coefficients, limit, step.offset(start), step.key, kind.rule)


# -------------------- pass by pass


def _take_whole_step(steps: Sequence[ParameterStep], options: Mapping[str, Any]) -> list[Tensor]:
    """AdamW's step of every parameter; returns the parameters before."""
    if not steps:
        return []
    params, grads, means, squares = map(list, zip(*(step.tensors() for step in steps), strict=True))
    before = [param.clone() for param in params]
    adamw_step(
        params,
        grads,
        means,
        squares,
        [step.step for step in steps],
        lr=options["lr"],
        betas=options["betas"],
        eps=options["eps"],
        weight_decay=options["weight_decay"],
    )
    for step in steps:
        step.means_updated = True
    return before


def _take_back_unselected(step: ParameterStep, before: Tensor) -> None:
    """Choose by the thresholds, remember the choice where later steps need it, and take back the rest."""
    for block, threshold in zip(step.blocks, step.thresholds, strict=True):
        where = slice(*step.local_range(block))
        selected = step.selected(block, threshold)
        if step.mask is not None:
            step.mask[where] = selected
        _take_back(step, where, before[where], selected)


def _take_back(step: ParameterStep, where: slice, before: Tensor, selected: Tensor) -> None:
    """Give coordinates that are not selected their values before the step, or these decayed."""
    param, *_ = step.tensors(where)
    left = before * Coefficients(*step.coefficients.unbind()).shrinkage if step.rule.decay_unselected else before
    param.copy_(torch.where(selected, param, left))
