"""MoFO's step on CUDA by the kernels of ``kernels.py``: few launches for a parameter group, and none waits for another.

What changes from step to step travels in one table with a row for each block, copied from pinned memory once for a
group. A sampled step is two launches, an exact one seven; shares of coordinates are counted in one when asked for.
Positions of samples and random scores are those of ``blocks.py`` and ``passes.py``, so that a CPU chooses the same.

Given up, and left to the passes of ``apply.py``: rows that are sharded over ranks, float64, choices that hold for
several steps, blocks of 2^31 coordinates, and samples that do not fit into the registers of a program.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_consistency.optimizers.adamw import adamw_state
from lit_consistency.optimizers.core.optimizer import Entry
from lit_consistency.optimizers.filtering.blocks import blocks_of
from lit_consistency.optimizers.filtering.passes import WORD, Rule, coefficients_of
from lit_consistency.optimizers.filtering.threshold import number_kept
from lit_consistency.optimizers.sharding.layout import layout_of

DEVICES = ("cuda",)
GRADS = (torch.float32, torch.bfloat16, torch.float16)
# a sample has at most twice as many coordinates; 512 threads hold 64 each
LARGEST_SAMPLE = 2**14
LARGEST_BLOCK = 2**31 - 2**15  # in the kernels indices are int32, and a tile's may lie beyond the end
WARPS = {"sample_kernel": 16}
PLANS = 64  # sets of parameters whose rows are remembered
# FNV-1a, as in core/rounding.py; the offset basis as int64
BASIS, PRIME = 0xCBF29CE484222325 - 2**64, 0x100000001B3
log = logging.getLogger(__name__)


class Job(NamedTuple):
    """One parameter in one step."""

    entry: Entry
    number: int  # of the step, from 1 on
    fraction: float


class Kind(NamedTuple):
    """Parameters that move in one launch, and what its kernels are made for."""

    device: torch.device
    grad: torch.dtype
    rule: Rule
    exact: bool


class Plan(NamedTuple):
    """What a set of parameters' rows have in common in every step."""

    rows: Tensor  # int64 (blocks, FIELDS), with the numbers kept at ``fractions``
    fractions: list[float]  # of the jobs, when they were last another one's
    owner: Tensor  # int64 (blocks,): job of each block
    offsets: Tensor  # int64 (blocks, 4): bytes from the parameter's, gradient's and means' begin to the block's
    sizes: list[int]  # of each block: how many scores the kept ones are kept of
    span: Tensor  # int64 (blocks,): where a sample may begin
    digests: Tensor  # int64 (blocks,): of the seeds of samples, without the step
    key_digests: Tensor  # int64 (jobs,): of the random filter's keys
    segments: Tensor  # int32 (segments, 2) on the device: block and number in it
    sample: int  # power of 2, at least as long as the longest sample
    numel: int


class DeviceFilter:
    """Moves parameters on CUDA; keeps the plans of their sets, and nothing that a state dict has to hold."""

    def __init__(self) -> None:
        self._plans: dict[Any, Plan] = {}
        self._failed: set[Kind] = set()

    def __reduce__(self) -> tuple[type[DeviceFilter], tuple[()]]:
        """A copy starts anew: its parameters are others."""
        return DeviceFilter, ()

    def kind_of(self, group: Mapping[str, Any], entry: Entry, required: bool = False) -> Kind | None:
        """What moves the parameter here, or None where the kernels do not take it.

        Raises:
            RuntimeError: the kernels should take it and do not run, and they are ``required``.
        """
        target, grad, exact = entry.target, entry.grad, group["selection"] == "exact"
        taken = (
            target.device.type in DEVICES
            and target.dtype == torch.float32
            and grad.dtype in GRADS
            and 0 < target.numel() <= LARGEST_BLOCK
            and group["refresh_every"] == 1
            and (exact or group["sample_size"] <= LARGEST_SAMPLE)
        )
        if not taken or (isinstance(entry.param, DTensor) and layout_of(entry.name, entry.param).group is not None):
            return None
        state = entry.state if type(entry.param) is not DTensor and "exp_avg" in entry.state else adamw_state(entry)
        if not (target.is_contiguous() and state["exp_avg"].is_contiguous() and state["exp_avg_sq"].is_contiguous()):
            return None
        rule = Rule(group["filter"], group["decay_unselected"])
        kind = Kind(target.device, grad.dtype, rule, exact)
        if kind in self._failed:
            return None
        try:
            _try_out(kind)
        except Exception as error:
            # whatever a compiler fails with, the step can do without it; nothing has moved yet
            if required:
                raise RuntimeError("compile = 'always': MoFO's kernels do not run; use auto or never") from error
            self._failed.add(kind)
            log.warning("MoFO's kernels do not run, and its step is slower; compile = 'never' is silent: %r", error)
            return None
        return kind

    @torch.no_grad()
    def move(self, group: Mapping[str, Any], kind: Kind, jobs: Sequence[Job]) -> tuple[int, Callable[[], Tensor]]:
        """One step of parameters of one kind, in place.

        Args:
            group: hyperparameters of all of them.
            kind: of all of them.
            jobs: at least one.

        Returns:
            Number of coordinates, and what counts how many of them the filter selected and how many of those moved,
            float64 (2,); to be asked before the means change again.
        """
        states = [adamw_state(job.entry) for job in jobs]
        # a gradient of another memory layout is copied, and its copy has to outlive the launches
        grads = [job.entry.grad.contiguous() for job in jobs]
        columns = [[job.entry.target for job in jobs], grads]
        columns += [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq")]
        plan = self._plan(group, kind, jobs)
        table, aligned = _table(group, kind, plan, jobs, columns)
        counted = _launch(kind, plan, table.to(kind.device, non_blocking=True), aligned)
        torch._foreach_add_([state["step"] for state in states], 1)
        kept = columns[2:] if kind.rule.filter != "gradient" else columns[1:]

        def count() -> Tensor:
            # the tensors whose addresses stand in the table live as long as this
            assert kept
            return counted()

        return plan.numel, count

    def _plan(self, group: Mapping[str, Any], kind: Kind, jobs: Sequence[Job]) -> Plan:
        """Of these parameters, made at the first step and after a change of the set or of its options."""
        split, seed = group["split"], group["seed"]
        sample_size = None if kind.exact else group["sample_size"]
        shapes = tuple((job.entry.name, job.entry.target.shape) for job in jobs)
        key = (kind, seed, sample_size, split and tuple(split), shapes)
        if key not in self._plans:
            if len(self._plans) >= PLANS:
                self._plans.clear()
            self._plans[key] = _make_plan(
                kind, [(job.entry.name, job.entry.target) for job in jobs], split, seed, sample_size
            )
        return self._plans[key]


# -------------------- rows


def _make_plan(kind: Kind, named: Sequence[tuple[str, Tensor]], split: Any, seed: int, sample_size: int | None) -> Plan:
    kernels = _kernels()
    blocks, owner, digests = [], [], []
    for i, (name, target) in enumerate(named):
        of_target = blocks_of(target.shape, split, sample_size, seed, name, 1)
        blocks += of_target
        owner += [i] * len(of_target)
        digests += [_digest(f"{seed}/{name}/{block.begin}/") for block in of_target]
    begin, numel, stride, sampled = (
        torch.tensor([getattr(block, key) for block in blocks]) for key in ("begin", "numel", "stride", "n_sampled")
    )
    n_segments = -(-numel // kernels.SEGMENT.value)
    first_segment = n_segments.cumsum(0) - n_segments
    rows = torch.zeros(len(blocks), kernels.FIELDS.value, dtype=torch.int64)
    for column, values in (
        (kernels.NUMEL, numel),
        (kernels.BEGIN, begin),
        (kernels.SEGMENT_OF, first_segment),
        (kernels.STRIDE, stride),
        (kernels.SAMPLED, sampled),
    ):
        rows[:, column.value] = values
    block_of = torch.repeat_interleave(torch.arange(len(blocks)), n_segments)
    segments = torch.stack([block_of, torch.arange(len(block_of)) - first_segment[block_of]], 1).to(torch.int32)
    return Plan(
        rows,
        [],
        torch.tensor(owner),
        begin[:, None] * torch.tensor([4, kind.grad.itemsize, 4, 4]),
        sampled.tolist(),
        numel - (sampled - 1) * stride,
        torch.tensor(digests),
        torch.tensor([_digest(f"{seed}/{name}/") for name, _ in named]),
        segments.to(kind.device),
        1 << (int(sampled.max()) - 1).bit_length(),
        int(numel.sum()),
    )


def _table(
    group: Mapping[str, Any], kind: Kind, plan: Plan, jobs: Sequence[Job], columns: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, bool]:
    """The rows of this step, and whether all addresses and sizes are multiples of 16."""
    kernels = _kernels()
    fractions = [job.fraction for job in jobs]
    if plan.fractions != fractions:
        kept = [number_kept(fractions[i], size) for i, size in zip(plan.owner.tolist(), plan.sizes, strict=True)]
        plan.rows[:, kernels.KEPT.value] = torch.tensor(kept)
        plan.fractions[:] = fractions
    # new memory in each step: the last table may still be on its way; torch hands it out again when it has arrived
    table = torch.empty(plan.rows.shape, dtype=torch.int64, pin_memory=columns[0][0].is_cuda)
    table.copy_(plan.rows)
    pointers = torch.tensor([[tensor.data_ptr() for tensor in column] for column in columns])
    torch.add(pointers.T[plan.owner], plan.offsets, out=table[:, : len(columns)])
    aligned = not (table[:, : kernels.NUMEL.value + 1] & 15).any().item()
    numbers = [job.number for job in jobs]
    options = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
    for number in set(numbers):
        here: Any = slice(None)
        if numbers.count(number) < len(numbers):
            here = torch.tensor([other == number for other in numbers])[plan.owner]
        by = coefficients_of(number, **options, dtype=torch.float32, device=torch.device("cpu"))
        table[here, kernels.ONE_MINUS_BETA1.value :] = by.view(torch.int32).to(torch.int64)
        if not kind.exact:
            table[here, kernels.FIRST.value] = _seeds(plan.digests[here], number) % plan.span[here]
        if kind.rule.filter == "random":
            keys = _seeds(plan.key_digests, number)[plan.owner][here]
            table[here, kernels.KEY_LOW.value] = keys & WORD
            table[here, kernels.KEY_HIGH.value] = keys >> 32
    return table, aligned


def _digest(text: str) -> int:
    """FNV-1a of a text as int64, to go on with."""
    digest = BASIS % 2**64
    for byte in text.encode():
        digest = ((digest ^ byte) * PRIME) % 2**64
    return digest - 2**64 if digest >= 2**63 else digest


def _seeds(digests: Tensor, number: int) -> Tensor:
    """``seed_of`` for texts that end with the number of the step, all at once; int64 products wrap as they should."""
    for byte in str(number).encode():
        digests = (digests ^ byte) * PRIME
    return (digests >> 1) & (2**63 - 1)


# -------------------- launches


def _launch(kind: Kind, plan: Plan, table: Tensor, aligned: bool) -> Callable[[], Tensor]:
    """Find the thresholds and move; returns what counts the chosen coordinates."""
    kernels, device = _kernels(), kind.device
    n_blocks, n_segments = len(plan.rows), len(plan.segments)
    kths = torch.empty(n_blocks, dtype=torch.float32, device=device)
    cuts = torch.empty(n_blocks, dtype=torch.int32, device=device)
    options = {"filter": kind.rule.filter, "grad_type": getattr(kernels.tl, str(kind.grad).removeprefix("torch."))}

    def launch(kernel: Any, programs: int, *tensors: Tensor, **constants: Any) -> None:
        name = kernel.__name__
        if device.type == "cuda":
            with torch.cuda.device(device):
                kernel[(programs,)](table, *tensors, **options, **constants, num_warps=WARPS.get(name, 8))
        else:
            kernel[(programs,)](table, *tensors, **options, **constants)

    if kind.exact:
        from lit_consistency.optimizers.filtering import kernels_exact

        counts = torch.zeros(
            n_blocks, kernels_exact.DIGITS.value, kernels_exact.BINS.value, dtype=torch.int32, device=device
        )
        ranks, ties = torch.empty_like(cuts), torch.empty(n_segments, dtype=torch.int32, device=device)
        for digit in range(kernels_exact.DIGITS.value):
            some = {"digit": digit, "first": digit == 0, "aligned": aligned}
            launch(kernels_exact.digit_kernel, n_segments, plan.segments, counts, **some)
        launch(kernels_exact.ties_kernel, n_segments, plan.segments, counts, kths, cuts, ranks, ties, aligned=aligned)
        launch(kernels_exact.cut_kernel, n_blocks, kths, cuts, ranks, ties)
    else:
        launch(kernels.sample_kernel, n_blocks, kths, cuts, sample=plan.sample)
    launch(
        kernels.step_kernel,
        n_segments,
        plan.segments,
        kths,
        cuts,
        aligned=aligned,
        decay_unselected=kind.rule.decay_unselected,
        mean_moved=kind.exact,
        square_moved=kind.exact and kind.rule.reads_square,
    )

    def count() -> Tensor:
        totals = torch.zeros(2, dtype=torch.int64, device=device)
        launch(kernels.count_kernel, n_segments, plan.segments, kths, cuts, totals, aligned=aligned)
        return totals.double()

    return count


@cache
def _kernels() -> Any:
    """The module of kernels, which imports Triton.

    Raises:
        ImportError: there is no Triton.
    """
    from lit_consistency.optimizers.filtering import kernels

    return kernels


@cache
def _try_out(kind: Kind) -> None:
    """Run the kernels on a small parameter, so that failing ones touch nothing else.

    Raises:
        Exception: of the import, of the compiler or of the device.
    """
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "split": (5, 3), "seed": 0}
    group |= {"sample_size": 2**10}
    param = torch.zeros(8, 1024, device=kind.device)
    state = {"step": torch.zeros((), device=kind.device)}
    state |= {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
    grad = torch.arange(param.numel(), device=kind.device).view_as(param).to(kind.grad)
    _, count = DeviceFilter().move(group, kind, [Job(Entry("trial", param, param, grad, state), 1, 0.5)])
    # waits for the device, which tells of its errors then
    selected = count().tolist()[0]
    if not 0 < selected < param.numel():
        raise RuntimeError(f"a trial selected {selected:.0f} of {param.numel()} coordinates: expected about a half")
