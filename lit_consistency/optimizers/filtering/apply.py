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
from lit_consistency.optimizers.filtering.compiled import TwoPasses, compiled_one_pass, compiled_two_passes
from lit_consistency.optimizers.filtering.threshold import Threshold, number_kept, row_thresholds


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
        program = compiled_one_pass(step.kind)
        for block, threshold in zip(step.blocks, step.thresholds, strict=True):
            _run_on_block(program, step, block, threshold)
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

    ``workspace`` keeps memory for the largest block's scores from step to step, where they are not abs(m).
    """
    for step in compiled:
        passes = compiled_two_passes(step.kind)
        for block in step.blocks:
            threshold = _exact_threshold(passes, step, block, workspace)
            step.thresholds.append(threshold)
            _run_on_block(passes.param, step, block, threshold)
        step.step.add_(1)
        step.means_updated = True
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


def _exact_threshold(passes: TwoPasses, step: ParameterStep, block: Block, workspace: Workspace) -> Threshold:
    """Move the means of a block; the threshold of exactly K of its coordinates."""
    begin, end = step.local_range(block)
    kept, smallest = number_kept(step.fraction, block.numel), step.rule.smallest
    _, grad, mean, square = step.tensors(slice(begin, end))
    scores = mean
    if passes.means is not None:
        on_cpu = mean.is_cpu
        scores = workspace.take("scores", mean.shape, mean.dtype) if on_cpu else torch.empty_like(mean)
        numbers = (step.coefficients, step.offset(begin), step.key)
        passes.means(grad, mean, square, *numbers, scores, step.kind.rule)
    if passes.select is None:
        threshold = row_thresholds(scores[None], kept, smallest).rows()[0]
        return threshold._replace(cut=threshold.cut + step.offset(begin))
    taken_in = grad if passes.means is None else None
    return passes.select(taken_in, scores, step.coefficients, kept, smallest, step.layout.begin + begin)


def _run_on_block(program: Callable[..., Any], step: ParameterStep, block: Block, threshold: Threshold) -> None:
    """Run a compiled pass on a block, on each side of the index where ties end if the pass compares no indices."""
    begin, end = step.local_range(block)
    smallest, (low, high, cut) = step.rule.smallest, threshold
    pieces = [(begin, end, threshold)]
    if not step.kind.rule.indexed:
        middle = min(end, max(begin, int(cut) - step.layout.begin))
        pieces = []
        if begin < middle:
            # beyond a number is from the next number on
            before = torch.nextafter(low, torch.full_like(low, -torch.inf)) if smallest else low
            pieces.append((begin, middle, Threshold(before, before, cut)))
        if middle < end:
            after = high if smallest else torch.nextafter(high, torch.full_like(high, torch.inf))
            pieces.append((middle, end, Threshold(after, after, cut)))
    for start, stop, limit in pieces:
        tensors = step.tensors(slice(start, stop))
        program(*tensors, step.coefficients, limit, step.offset(start), step.key, step.kind.rule)


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
    left = before * step.by.shrinkage if step.rule.decay_unselected else before
    param.copy_(torch.where(selected, param, left))
