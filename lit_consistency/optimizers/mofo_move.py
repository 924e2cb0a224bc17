"""How works move once their thresholds are known: compiled in one pass or two, or step by step.

Step by step, the parameter takes AdamW's whole step, and what was not chosen is taken back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_consistency.optimizers.adamw import adamw_step
from lit_consistency.optimizers.mofo_compile import Kind, compiled_one_pass, compiled_two_passes
from lit_consistency.optimizers.mofo_shares import Counts
from lit_consistency.optimizers.mofo_step import number_kept, places, score
from lit_consistency.optimizers.mofo_work import Work, sampled_thresholds, sharded_exact_thresholds, widened
from lit_consistency.optimizers.selection import Threshold, chosen, threshold_in_place


def kind_of(work: Work) -> Kind:
    """The kind of compiled program that moves a work."""
    return Kind(work.param.device, work.param.dtype, work.grad.dtype, work.exp_avg.dtype, work.rule)


def move_sampled(compiled: Sequence[Work], eager: Sequence[Work], options: Mapping[str, Any]) -> list[Counts]:
    """One step with thresholds from samples; works of one process group and one dtype.

    Args:
        compiled: works that a compiled program moves.
        eager: works that do not.
        options: ``lr``, ``betas``, ``eps``, ``weight_decay``.

    Returns:
        Counts of the works.
    """
    before = take_whole_step(eager, options)
    works = [*compiled, *eager]
    thresholds = sampled_thresholds(works)
    return [
        _take_back(work, before, of_blocks) if id(work) in before else _one_pass(work, of_blocks)
        for work, of_blocks in zip(works, thresholds, strict=True)
    ]


def move_exactly(compiled: Sequence[Work], eager: Sequence[Work], options: Mapping[str, Any]) -> list[Counts]:
    """One step with exactly K coordinates of each block, likewise; sharded works are all in ``eager``."""
    counts = []
    if compiled:
        scratch = torch.empty_like(max((work.exp_avg for work in compiled), key=len))
        counts += [_two_passes(work, scratch) for work in compiled]
    if eager:
        before = take_whole_step(eager, options)
        sharded = eager[0].layout.group is not None
        thresholds = sharded_exact_thresholds(eager) if sharded else sampled_thresholds(eager)
        counts += [_take_back(work, before, part) for work, part in zip(eager, thresholds, strict=True)]
    return counts


def move_masked(works: Sequence[Work], options: Mapping[str, Any]) -> list[Counts]:
    """One step of the coordinates that an earlier step has chosen."""
    before = take_whole_step(works, options)
    return [_restore(work, slice(None), before[id(work)], work.mask) for work in works if work.mask is not None]


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


def _one_pass(work: Work, thresholds: Sequence[Threshold]) -> Counts:
    program = compiled_one_pass(kind_of(work))
    work.step.add_(1)
    counts = []
    for block, threshold in zip(work.blocks, thresholds, strict=True):
        begin, end = work.span(block)
        if begin < end:
            tensors = (t[begin:end] for t in (work.param, work.grad, work.exp_avg, work.exp_avg_sq))
            rest = (work.numbers, widened(threshold), work.offset(begin), work.key, work.rule)
            counts.append(program(*tensors, *rest))
    return _total(work, counts)


def _two_passes(work: Work, scratch: Tensor) -> Counts:
    first, second = compiled_two_passes(kind_of(work))
    work.step.add_(1)
    counts = []
    for block in work.blocks:
        begin, end = work.span(block)
        param, grad, mean, square = (t[begin:end] for t in (work.param, work.grad, work.exp_avg, work.exp_avg_sq))
        scores, offset = scratch[: end - begin], work.offset(begin)
        first(grad, mean, square, work.numbers, offset, work.key, scores, work.rule)

        def again(grad: Tensor = grad, mean: Tensor = mean, square: Tensor = square, at: Tensor = offset) -> Tensor:
            return score(work.rule.filter, grad, mean, square, work.numbers, places(grad, at), work.key)

        kept = number_kept(work.fraction, end - begin)
        low, high, cut = threshold_in_place(scores, kept, work.rule.smallest, again)
        threshold = Threshold(low, high, cut + offset)
        counts.append(second(param, grad, mean, square, work.numbers, threshold, offset, work.key, work.rule))
    return _total(work, counts)


def _take_back(work: Work, before: Mapping[int, Tensor], thresholds: Sequence[Threshold]) -> Counts:
    counts = []
    for block, threshold in zip(work.blocks, thresholds, strict=True):
        begin, end = work.span(block)
        scores = work.scores(block, whole=True)
        selected = chosen(scores, places(scores, work.offset(begin)), threshold, work.rule.smallest)
        if work.mask is not None:
            work.mask[begin:end] = selected
        counts.append(_restore(work, slice(begin, end), before[id(work)][begin:end], selected))
    return _total(work, counts)


def _restore(work: Work, part: slice, before: Tensor, selected: Tensor) -> Counts:
    """Undo the step of what is not selected."""
    left = before * work.numbers[4] if work.rule.decay_unselected else before
    work.param[part] = torch.where(selected, work.param[part], left)
    return selected.count_nonzero(), (selected & (work.exp_avg[part] != 0)).count_nonzero()


def _total(work: Work, counts: Sequence[Counts]) -> Counts:
    if not counts:
        return work.numbers.new_zeros(()), work.numbers.new_zeros(())
    return sum(c[0] for c in counts), sum(c[1] for c in counts)  # type: ignore[return-value]
