"""How works move once their thresholds are known: compiled in one pass or two, or step by step.

Step by step, the parameter takes AdamW's whole step, and what was not chosen is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_consistency.optimizers.adamw import adamw_step
from lit_consistency.optimizers.core.workspace import Workspace
from lit_consistency.optimizers.filtering.blocks import Block, Work, sampled_thresholds, sharded_exact_thresholds
from lit_consistency.optimizers.filtering.compiled import Kind, compiled_one_pass, compiled_two_passes
from lit_consistency.optimizers.filtering.passes import number_kept, places, score
from lit_consistency.optimizers.filtering.threshold import Threshold, threshold_in_place


def kind_of(work: Work) -> Kind:
    """The kind of compiled program that moves a work."""
    rule = work.rule._replace(indexed=work.param.device.type != "cpu")
    return Kind(work.param.device, work.param.dtype, work.grad.dtype, work.exp_avg.dtype, rule)


def move_sampled(compiled: Sequence[Work], eager: Sequence[Work], options: Mapping[str, Any]) -> None:
    """One step with thresholds from samples; works of one process group and one dtype.

    Args:
        compiled: works that a compiled program moves.
        eager: works that do not.
        options: ``lr``, ``betas``, ``eps``, ``weight_decay``.
    """
    before = take_whole_step(eager, options)
    sampled_thresholds([*compiled, *eager])
    for work in compiled:
        _one_pass(work)
    for work in eager:
        _take_back(work, before[id(work)])


def move_exactly(
    compiled: Sequence[Work], eager: Sequence[Work], options: Mapping[str, Any], workspace: Workspace
) -> None:
    """One step with exactly K coordinates of each block, likewise; sharded works are all in ``eager``.

    ``workspace`` keeps the scores of the largest parameter from step to step.
    """
    if compiled:
        largest = max((work.exp_avg for work in compiled), key=len)
        cpu = largest.device.type == "cpu"
        scratch = workspace.take("scores", largest.shape, largest.dtype) if cpu else torch.empty_like(largest)
        for work in compiled:
            _two_passes(work, scratch)
    if eager:
        before = take_whole_step(eager, options)
        sharded = eager[0].layout.group is not None
        (sharded_exact_thresholds if sharded else sampled_thresholds)(eager)
        for work in eager:
            _take_back(work, before[id(work)])


def move_masked(works: Sequence[Work], options: Mapping[str, Any]) -> None:
    """One step of the coordinates that an earlier step has chosen."""
    before = take_whole_step(works, options)
    for work in works:
        assert work.mask is not None
        _restore(work, slice(None), before[id(work)], work.mask)


def take_whole_step(works: Sequence[Work], options: Mapping[str, Any]) -> dict[int, Tensor]:
    """AdamW's step of every work; returns its id -> the parameter before."""
    before = {id(work): work.param.clone() for work in works}
    adamw_step(
        [work.param for work in works],
        [work.grad for work in works],
        [work.exp_avg for work in works],
        [work.exp_avg_sq for work in works],
        [work.step for work in works],
        lr=options["lr"],
        betas=options["betas"],
        eps=options["eps"],
        weight_decay=options["weight_decay"],
    )
    for work in works:
        work.moved = True
    return before


def _one_pass(work: Work) -> None:
    kind = kind_of(work)
    for block, threshold in zip(work.blocks, work.thresholds, strict=True):
        _run(compiled_one_pass(kind), kind, work, block, threshold)
    work.step.add_(1)
    work.moved = True


def _two_passes(work: Work, scratch: Tensor) -> None:
    kind = kind_of(work)
    first, second = compiled_two_passes(kind)
    for block in work.blocks:
        begin, end = work.span(block)
        grad, mean, square = (t[begin:end] for t in (work.grad, work.exp_avg, work.exp_avg_sq))
        scores, offset = scratch[: end - begin], work.offset(begin)
        first(grad, mean, square, work.numbers, offset, work.key, scores, kind.rule)

        def again(start: int, stop: int, begin: int = begin) -> Tensor:
            part = slice(begin + start, begin + stop)
            grad, mean, square = work.grad[part], work.exp_avg[part], work.exp_avg_sq[part]
            # only the random filter looks at the index
            index = places(grad, work.offset(part.start)) if work.rule.filter == "random" else work.key
            return score(work.rule.filter, grad, mean, square, work.numbers, index, work.key)

        low, high, cut = threshold_in_place(scores, number_kept(work.fraction, end - begin), work.rule.smallest, again)
        work.thresholds.append(Threshold(low, high, cut + offset))
        _run(second, kind, work, block, work.thresholds[-1])
    work.step.add_(1)
    work.moved = True


def _run(program: Callable[..., None], kind: Kind, work: Work, block: Block, threshold: Threshold) -> None:
    """Run a compiled pass on a block, on each side of the place where ties end if the pass does not look at indices."""
    begin, end = work.span(block)
    parts = [(begin, end, threshold)]
    if not kind.rule.indexed:
        low, high, cut = threshold
        middle = min(end, max(begin, int(cut) - work.layout.begin))
        # beyond a number is from the next number on
        if work.rule.smallest:
            first, second = torch.nextafter(low, torch.full_like(low, -torch.inf)), high
        else:
            first, second = low, torch.nextafter(high, torch.full_like(high, torch.inf))
        parts = [(begin, middle, Threshold(first, first, cut)), (middle, end, Threshold(second, second, cut))]
    for start, stop, numbers in parts:
        if start < stop:
            tensors = (t[start:stop] for t in (work.param, work.grad, work.exp_avg, work.exp_avg_sq))
            program(*tensors, work.numbers, numbers, work.offset(start), work.key, kind.rule)


def _take_back(work: Work, before: Tensor) -> None:
    for block, threshold in zip(work.blocks, work.thresholds, strict=True):
        begin, end = work.span(block)
        selected = work.selected(block, threshold)
        if work.mask is not None:
            work.mask[begin:end] = selected
        _restore(work, slice(begin, end), before[begin:end], selected)


def _restore(work: Work, part: slice, before: Tensor, selected: Tensor) -> None:
    """Undo the step of what is not selected."""
    left = before * work.numbers[4] if work.rule.decay_unselected else before
    work.param[part] = torch.where(selected, work.param[part], left)
