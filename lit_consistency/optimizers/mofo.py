"""MoFO: AdamW that moves, of every block, only the coordinates of largest momentum.

The moments are dense; the kept coordinates take AdamW's ordinary step, the others stay where they are. With fraction
1 it is AdamW, bit for bit, because it then is AdamW's own step. A fused query-key-value matrix is three blocks, and a
block is whole also where its rows are sharded.

``selection: sampled`` finds the threshold of a large block from a sample of its new momentum, before one compiled pass
over memory; the share that moves is then the fraction within about sqrt((1 - fraction) / (fraction * sample_size)),
relatively. ``exact`` moves exactly K coordinates and takes two passes and a partition. Small runs are not compiled.

Given up: shards by columns, and memory where nothing is compiled: a copy of the parameters of one group then lives
during its step.

Source: Chen et al. 2025, MoFO: Momentum-Filtered Optimizer for Mitigating Forgetting in LLM Fine-Tuning, TMLR, arXiv
2407.20999.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lit_consistency.optimizers.adamw import adamw_state, update_adamw
from lit_consistency.optimizers.core.checks import check_adam, check_choice, check_choices, check_count, check_share
from lit_consistency.optimizers.core.optimizer import (
    DECAY_ROLES,
    Entry,
    GroupOptimizer,
    LowPrecision,
    check_present,
    decay_by_role,
    local,
    require_roles,
)
from lit_consistency.optimizers.core.workspace import Workspace
from lit_consistency.optimizers.filtering.apply import kind_of, move_exactly, move_masked, move_sampled
from lit_consistency.optimizers.filtering.blocks import Work, blocks_of
from lit_consistency.optimizers.filtering.compiled import compiled_one_pass, compiled_two_passes
from lit_consistency.optimizers.filtering.density import Shares
from lit_consistency.optimizers.filtering.passes import FILTERS, Filter, Rule, coefficients, key_of
from lit_consistency.optimizers.groups import ROLES
from lit_consistency.optimizers.sharding.layout import layout_of

Selection = Literal["sampled", "exact"]
SELECTIONS: tuple[str, ...] = get_args(Selection)
Compile = Literal["auto", "always", "never"]
COMPILES: tuple[str, ...] = get_args(Compile)
MIN_SAMPLE = 1024
# below, a step takes less than a second even step by step, and compiling takes longer than many of them
WORTH_COMPILING = 2**22
log = logging.getLogger(__name__)


class MoFO(GroupOptimizer):
    """AdamW on the share of each block's coordinates that have the largest momentum.

    Args:
        groups: of ``parameter_groups(model)``.
        lr: learning rate, at least 0.
        betas: decay rates of the running means of the gradient and of its square, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: per step, parameters shrink by lr * weight_decay; at least 0.
        fraction: share of each block's coordinates that move in a step, 0 < fraction <= 1; at least one moves.
        role_fractions: role -> its own share, e.g. ``{embedding: 0.05}``; the other roles have ``fraction``.
        final_fraction: share at the end of a linear change over ``anneal_steps`` steps, of every role; none: no change.
        anneal_steps: number of steps of that change; 0 without one.
        filter: what is largest where coordinates move: ``momentum`` abs(m); for ablations ``gradient`` abs(g),
            ``adam_update`` abs(m) / (sqrt(v) + eps), ``second_moment`` v, ``random``, and ``complement``: those that
            momentum with 1 - fraction would leave, the smallest abs(m).
        refresh_every: number of steps for which a choice of coordinates holds; 1 chooses in every step.
        selection: ``sampled`` estimates the threshold of large blocks from a sample; ``exact`` moves exactly
            ceil(fraction * n) of the n coordinates of every block, of equal ones the first.
        sample_size: coordinates in a sample, at least 1024, at most twice as many; smaller blocks are exact.
        compile: ``auto`` compiles the step where there is a compiler and at least 2^22 coordinates are filtered,
            ``always`` fails without one, ``never`` goes step by step. Smaller blocks than a sample are not compiled.
        decay_unselected: whether weight decay also shrinks the coordinates that the filter leaves; they stay put if
            not.
        seed: of the random filter, of the samples and of stochastic rounding: functions of seed, parameter name and
            step.
        unfiltered_roles: roles whose parameters take AdamW's full step.
        decay_roles: roles of the parameters that shrink.
        low_precision: how parameters in bfloat16 or float16 move: ``master`` moves a float32 copy and rounds it to
            them; ``stochastic`` rounds each step up or down by chance; ``nearest`` rounds it, and loses small ones.
    """

    def __init__(
        self,
        groups: ParamsT,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fraction: float = 0.15,
        role_fractions: Mapping[str, float] | None = None,
        final_fraction: float | None = None,
        anneal_steps: int = 0,
        filter: Filter = "momentum",
        refresh_every: int = 1,
        selection: Selection = "sampled",
        sample_size: int = 16384,
        compile: Compile = "auto",
        decay_unselected: bool = False,
        seed: int = 0,
        unfiltered_roles: Sequence[str] = ("norm", "bias"),
        decay_roles: Sequence[str] = DECAY_ROLES,
        low_precision: LowPrecision = "master",
    ) -> None:
        shares = dict(role_fractions or {})
        check_adam(lr, betas, eps, weight_decay)
        _check_shares(fraction, shares, final_fraction, anneal_steps)
        check_count("refresh_every", refresh_every, 1)
        check_count("sample_size", sample_size, MIN_SAMPLE)
        check_choice("filter", filter, FILTERS)
        check_choice("selection", selection, SELECTIONS)
        check_choice("compile", compile, COMPILES)
        check_choices("unfiltered_roles", unfiltered_roles, ROLES)
        check_choices("decay_roles", decay_roles, ROLES)
        required = require_roles("MoFO", groups)
        check_present("role_fractions", shares, required)
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "fraction": fraction}
        defaults |= {"final_fraction": final_fraction, "anneal_steps": anneal_steps, "refresh_every": refresh_every}
        defaults |= {"filter": filter, "selection": selection, "sample_size": sample_size}
        defaults |= {"decay_unselected": decay_unselected, "seed": seed}
        with_roles = [
            {"filtered": g["role"] not in unfiltered_roles, "fraction": shares.get(g["role"], fraction)} | g
            for g in required
        ]
        self.compile = compile
        self._steps: dict[Tensor, int] = {}
        self._shares = Shares()
        self._compiler_failed = False
        super().__init__(decay_by_role(with_roles, weight_decay, decay_roles), defaults, low_precision, seed)
        self.workspace = Workspace()
        self._numel = sum(p.numel() for group in self.param_groups if group["filtered"] for p in group["params"])

    def update_group(self, group: dict[str, Any], entries: list[Entry]) -> None:
        """One AdamW step of the group; where it is filtered, only the selected coordinates keep it."""
        if not group["filtered"]:
            update_adamw(entries, group)
            return
        for entry in entries:
            # the device is asked once, after a start or a resume
            taken = self._steps.get(entry.param)
            self._steps[entry.param] = (int(adamw_state(entry)["step"]) if taken is None else taken) + 1
        fractions = [share_at(group, self._steps[entry.param]) for entry in entries]
        whole = [entry for entry, fraction in zip(entries, fractions, strict=True) if fraction == 1]
        update_adamw(whole, group)
        for entry in whole:
            self._shares.add_whole(group["role"], entry)
        works = [(self._work(group, e, f), e) for e, f in zip(entries, fractions, strict=True) if f < 1]
        # one process group and one dtype at a time
        buckets: defaultdict[tuple[Any, torch.dtype], list[Work]] = defaultdict(list)
        for work, _ in works:
            buckets[work.layout.group, work.exp_avg.dtype].append(work)
        for bucket in buckets.values():
            self._move(group, bucket)
        for work, entry in works:
            _write_back(work, entry)
            self._shares.add(group["role"], work)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """As for every optimizer here; what ``last_density`` tells starts anew."""
        self._shares = Shares()
        return super().step(closure)

    def last_density(self) -> dict[str, float]:
        """Share in [0, 1] of the coordinates with a non-zero update in the last step, by role, of what is filtered.

        Below ``last_selected`` where the filter spends its budget on zeros, as in an embedding with few active rows.
        Of sharded parameters it is the share over all ranks, which must call this together.
        """
        return {role: shares[1] for role, shares in self._shares.by_role().items()}

    def last_selected(self) -> dict[str, float]:
        """Share in [0, 1] of the coordinates that the filter selected in the last step, likewise."""
        return {role: shares[0] for role, shares in self._shares.by_role().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state, also of a version that had fewer options."""
        groups = [self.defaults | group for group in state_dict["param_groups"]]
        super().load_state_dict(state_dict | {"param_groups": groups})
        self._steps = {}
        for state in self.state.values():
            if "mask" in state:
                state["mask"] = state["mask"].bool()

    def _work(self, group: dict[str, Any], entry: Entry, fraction: float) -> Work:
        state, step = adamw_state(entry), self._steps[entry.param]
        param, grad, mean, square = (
            t.reshape(-1) for t in (entry.target, entry.grad, state["exp_avg"], state["exp_avg_sq"])
        )
        device, dtype = param.device, mean.dtype
        options = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
        size = group["sample_size"] if group["selection"] == "sampled" else None
        return Work(
            entry.name,
            param,
            grad,
            mean,
            square,
            step=state["step"],
            numbers=coefficients(step, **options, dtype=dtype, device=device),
            key=key_of(group["seed"], entry.name, step, device),
            rule=Rule(group["filter"], group["decay_unselected"]),
            fraction=fraction,
            layout=layout_of(entry.name, entry.param),
            blocks=blocks_of(entry.param.shape, group["split"], size, group["seed"], entry.name, step),
            **_mask(group, entry, step),
        )

    def _move(self, group: dict[str, Any], works: list[Work]) -> None:
        """Move works of one process group and one dtype."""
        held = [work for work in works if not work.choose]
        if held:
            move_masked(held, group)
        choosing = [work for work in works if work.choose]
        compiled = [work for work in choosing if self._compiles(group, work)]
        known = {id(work) for work in compiled}
        eager = [work for work in choosing if id(work) not in known]
        if choosing:
            if group["selection"] == "sampled":
                move_sampled(compiled, eager, group)
            else:
                move_exactly(compiled, eager, group, self.workspace)

    def _compiles(self, group: dict[str, Any], work: Work) -> bool:
        """Whether a compiled program moves the work."""
        exact = group["selection"] == "exact"
        wanted = self.compile == "always" or (self.compile == "auto" and self._numel >= WORTH_COMPILING)
        small = min(block.end - block.begin for block in work.blocks) <= group["sample_size"]
        sharded = work.layout.group is not None
        if not wanted or small or self._compiler_failed or work.mask is not None or (exact and sharded):
            return False
        try:
            (compiled_two_passes if exact else compiled_one_pass)(kind_of(work))
        except Exception as error:
            # whatever a compiler fails with, the step can do without it; nothing has moved yet
            if self.compile == "always":
                raise RuntimeError("compile = 'always': the step does not compile; use auto or never") from error
            self._compiler_failed = True
            log.warning("MoFO is not compiled and steps more slowly; compile = 'never' is silent about it: %r", error)
            return False
        return True


def share_at(group: Mapping[str, Any], step: int) -> float:
    """Share of the coordinates that move in step 1, 2, ...: linear from ``fraction`` to ``final_fraction``."""
    start, end, steps = group["fraction"], group["final_fraction"], group["anneal_steps"]
    if end is None:
        return start
    return end if step > steps else start + (end - start) * (step - 1) / steps


def _mask(group: Mapping[str, Any], entry: Entry, step: int) -> dict[str, Any]:
    """Where the choice of several steps is kept, flat, local, and part of the state; and whether it is due."""
    if group["refresh_every"] == 1:
        return {}
    due = (step - 1) % group["refresh_every"] == 0 or "mask" not in entry.state
    if "mask" not in entry.state:
        mask = torch.zeros_like(entry.param, dtype=torch.bool, memory_format=torch.contiguous_format)
        entry.state["mask"] = mask
    return {"mask": local(entry.state["mask"]).view(-1), "choose": due}


def _write_back(work: Work, entry: Entry) -> None:
    """Put the flat copies of tensors of another memory layout back."""
    state = adamw_state(entry)
    pairs = ((work.param, entry.target), (work.exp_avg, state["exp_avg"]), (work.exp_avg_sq, state["exp_avg_sq"]))
    for flat, tensor in pairs:
        if not tensor.is_contiguous():
            tensor.copy_(flat.view(tensor.shape))


def _check_shares(
    fraction: float, role_fractions: Mapping[str, float], final_fraction: float | None, anneal_steps: int
) -> None:
    """Refuse shares outside (0, 1], unknown roles, and half of an annealing.

    Raises:
        ValueError: naming option, value and what is allowed.
    """
    check_share("fraction", fraction)
    for role, share in role_fractions.items():
        check_choice("role_fractions", role, ROLES)
        check_share(f"role_fractions.{role}", share)
    check_count("anneal_steps", anneal_steps, 0)
    if final_fraction is not None:
        check_share("final_fraction", final_fraction)
    if (final_fraction is None) != (anneal_steps == 0):
        raise ValueError(
            f"anneal_steps = {anneal_steps}: expected at least 1 with a final_fraction and 0 without, "
            f"got final_fraction = {final_fraction}"
        )
