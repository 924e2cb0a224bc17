r"""MoFO: AdamW that moves, of every block, only the coordinates of largest momentum.

.. math::
    m \leftarrow m + (1 - \beta_1) (g - m), \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
    p_i \leftarrow (1 - \eta \lambda) p_i - \frac{\eta m_i}{(1 - \beta_1^t) (\sqrt{v_i / (1 - \beta_2^t)} + \epsilon)}
    \; \text{ where } |m_i| \text{ is among the } \lceil \text{fraction} \cdot n \rceil \text{ largest of the block}

The means are dense; the other coordinates of p stay where they are. With fraction 1 it is AdamW, bit for bit, because
it then is AdamW's own step. A fused query-key-value matrix is three blocks, and a block is whole also where its rows
are sharded.

``selection: sampled`` finds the threshold of a large block from a sample of its new momentum, before one compiled pass
over memory; the share that moves is then the fraction within about sqrt((1 - fraction) / (fraction * sample_size)),
relatively. ``exact`` moves exactly K coordinates and takes two passes; a sample tells which few scores the threshold
lies among. Small runs are not compiled.

From gradient to weight: ``MoFO.update_group`` here, ``filtering/apply.py`` for a parameter, ``filtering/passes.py`` for
a coordinate; the thresholds come from ``filtering/blocks.py``. On CUDA ``filtering/cuda.py`` moves whole groups.

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
    local,
    require_roles,
)
from lit_consistency.optimizers.core.workspace import Workspace
from lit_consistency.optimizers.filtering.apply import move_exactly, move_held, move_sampled
from lit_consistency.optimizers.filtering.blocks import ParameterStep, blocks_of
from lit_consistency.optimizers.filtering.compiled import compiled_one_pass, compiled_two_passes
from lit_consistency.optimizers.filtering.cuda import DeviceFilter, Job, Kind
from lit_consistency.optimizers.filtering.density import SelectionStats
from lit_consistency.optimizers.filtering.passes import (
    FILTERS,
    Coefficients,
    Filter,
    Rule,
    coefficients_of,
    key_of,
)
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
        eps: added to the denominator, above 0.
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
            On CUDA kernels take what they can, of any size, unless it is ``never``; see ``filtering/cuda.py``.
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
        check_adam(lr, betas, eps, weight_decay)
        _check_shares(fraction, role_fractions or {}, final_fraction, anneal_steps)
        check_count("refresh_every", refresh_every, 1)
        check_count("sample_size", sample_size, MIN_SAMPLE)
        check_choice("filter", filter, FILTERS)
        check_choice("selection", selection, SELECTIONS)
        check_choice("compile", compile, COMPILES)
        check_choices("unfiltered_roles", unfiltered_roles, ROLES)
        check_choices("decay_roles", decay_roles, ROLES)
        groups = require_roles("MoFO", groups)
        check_present("role_fractions", role_fractions or {}, groups)
        self.unfiltered_roles = tuple(unfiltered_roles)
        self.role_fractions = dict(role_fractions or {})
        self.compile = compile
        self.workspace = Workspace()
        self._steps_taken: dict[Tensor, int] = {}
        self._stats = SelectionStats()
        self._compiler_failed = False
        self._on_device = DeviceFilter()
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "fraction": fraction}
        defaults |= {"final_fraction": final_fraction, "anneal_steps": anneal_steps, "refresh_every": refresh_every}
        defaults |= {"filter": filter, "selection": selection, "sample_size": sample_size}
        defaults |= {"decay_unselected": decay_unselected, "seed": seed}
        super().__init__(groups, defaults, low_precision, seed, decay_roles)

    def complete_group(self, group: dict[str, Any]) -> dict[str, Any]:
        """See ``GroupOptimizer``; whether a group is filtered, and which share moves, follows from its role."""
        (group,) = require_roles("MoFO", [group])
        group.setdefault("filtered", group["role"] not in self.unfiltered_roles)
        group.setdefault("fraction", self.role_fractions.get(group["role"], self.defaults["fraction"]))
        return super().complete_group(group)

    def update_group(self, group: dict[str, Any], entries: list[Entry]) -> None:
        """One AdamW step of the group; where it is filtered, only the selected coordinates keep it."""
        if not group["filtered"]:
            update_adamw(entries, group)
            return
        unfiltered: list[Entry] = []
        filtered: list[tuple[Entry, ParameterStep]] = []
        on_device: defaultdict[Kind, list[Job]] = defaultdict(list)
        numbers: dict[Any, Any] = {}
        for entry in entries:
            # the device is asked once, after a start or a resume
            taken = self._steps_taken.get(entry.param)
            number = (int(adamw_state(entry)["step"]) if taken is None else taken) + 1
            self._steps_taken[entry.param] = number
            fraction = share_at(group, number)
            if fraction == 1:
                unfiltered.append(entry)
            elif kind := self._kind_on_device(group, entry):
                on_device[kind].append(Job(entry, number, fraction))
            else:
                filtered.append((entry, _parameter_step(group, entry, number, fraction, numbers)))
        update_adamw(unfiltered, group)
        for entry in unfiltered:
            self._stats.add_unfiltered(group["role"], entry)
        for kind, jobs in on_device.items():
            self._stats.add_counts(group["role"], *self._on_device.move(group, kind, jobs))
        # one process group and one dtype at a time
        alike: defaultdict[tuple[Any, torch.dtype], list[ParameterStep]] = defaultdict(list)
        for _, step in filtered:
            alike[step.layout.group, step.exp_avg.dtype].append(step)
        for steps in alike.values():
            self._move(group, steps)
        for entry, step in filtered:
            _write_back(step, entry)
            self._stats.add(group["role"], step)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """As for every optimizer here; the shares of the last step are forgotten."""
        self._stats = SelectionStats()
        return super().step(closure)

    def last_density(self) -> dict[str, float]:
        """Share in [0, 1] of the coordinates with a non-zero update in the last step, by role, of what is filtered.

        Below ``last_selected`` where the filter spends its budget on zeros, as in an embedding with few active rows.
        Of sharded parameters it is the share over all ranks, which must call this together.
        """
        return {role: moved for role, (_, moved) in self._stats.shares().items()}

    def last_selected(self) -> dict[str, float]:
        """Share in [0, 1] of the coordinates that the filter selected in the last step, likewise."""
        return {role: selected for role, (selected, _) in self._stats.shares().items()}

    def log_values(self) -> dict[str, float]:
        """``density/ROLE`` and ``selected/ROLE``: ``last_density`` and ``last_selected``."""
        density = {f"density/{role}": share for role, share in self.last_density().items()}
        return density | {f"selected/{role}": share for role, share in self.last_selected().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state, also of a version that had fewer options."""
        groups = [self.defaults | group for group in state_dict["param_groups"]]
        super().load_state_dict(state_dict | {"param_groups": groups})
        self._steps_taken = {}
        for state in self.state.values():
            if "mask" in state:
                state["mask"] = state["mask"].bool()

    def _kind_on_device(self, group: dict[str, Any], entry: Entry) -> Kind | None:
        """What kernels on CUDA move the parameter; None: the passes of ``filtering/apply.py`` do."""
        if self.compile == "never":
            return None
        return self._on_device.kind_of(group, entry, required=self.compile == "always")

    def _move(self, group: dict[str, Any], steps: list[ParameterStep]) -> None:
        """Move parameters of one process group and one dtype."""
        held, compiled, eager = [], [], []
        numel = sum(p.numel() for group in self.param_groups if group["filtered"] for p in group["params"])
        wanted = self.compile == "always" or (self.compile == "auto" and numel >= WORTH_COMPILING)
        for step in steps:
            if not step.chooses:
                held.append(step)
            elif wanted and self._compiles(group, step):
                compiled.append(step)
            else:
                eager.append(step)
        move_held(held, group)
        if group["selection"] == "sampled":
            move_sampled(compiled, eager, group)
        else:
            move_exactly(compiled, eager, group, self.workspace)

    def _compiles(self, group: dict[str, Any], step: ParameterStep) -> bool:
        """Whether a compiled program can move the parameter."""
        exact = group["selection"] == "exact"
        small = min(block.numel for block in step.blocks) <= group["sample_size"]
        sharded = step.layout.group is not None
        if small or self._compiler_failed or step.mask is not None or (exact and sharded):
            return False
        try:
            (compiled_two_passes if exact else compiled_one_pass)(step.kind)
        except Exception as error:
            # whatever a compiler fails with, the step can do without it; nothing has moved yet
            if self.compile == "always":
                raise RuntimeError("compile = 'always': the step does not compile; use auto or never") from error
            self._compiler_failed = True
            log.warning("MoFO is not compiled and steps more slowly; compile = 'never' is silent about it: %r", error)
            return False
        return True


def _parameter_step(
    group: Mapping[str, Any], entry: Entry, number: int, fraction: float, numbers: dict[Any, Any]
) -> ParameterStep:
    """What a parameter's step of this number needs, with flat tensors, and the choice that is kept for later steps.

    ``numbers`` keeps the step's coefficients for the group's next parameters.
    """
    state = adamw_state(entry)
    param, grad, mean, square = (
        tensor.reshape(-1) for tensor in (entry.target, entry.grad, state["exp_avg"], state["exp_avg_sq"])
    )
    alike = (number, mean.dtype, param.device)
    if alike not in numbers:
        options = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
        coefficients = coefficients_of(number, **options, dtype=mean.dtype, device=param.device)
        numbers[alike] = coefficients, Coefficients(*coefficients.unbind()), key_of(0, "", 0, param.device)
    coefficients, by, key = numbers[alike]
    if group["filter"] == "random":
        key = key_of(group["seed"], entry.name, number, param.device)
    size = group["sample_size"] if group["selection"] == "sampled" else None
    step = ParameterStep(
        param,
        grad,
        mean,
        square,
        step=state["step"],
        coefficients=coefficients,
        by=by,
        key=key,
        rule=Rule(group["filter"], group["decay_unselected"]),
        fraction=fraction,
        layout=layout_of(entry.name, entry.param),
        blocks=blocks_of(entry.param.shape, group["split"], size, group["seed"], entry.name, number),
    )
    if group["refresh_every"] > 1:
        step.chooses = (number - 1) % group["refresh_every"] == 0 or "mask" not in entry.state
        if "mask" not in entry.state:
            mask = torch.zeros_like(entry.param, dtype=torch.bool, memory_format=torch.contiguous_format)
            entry.state["mask"] = mask
        step.mask = local(entry.state["mask"]).view(-1)
    return step


def _write_back(step: ParameterStep, entry: Entry) -> None:
    """Put the flat copies of tensors of another memory layout back."""
    state = adamw_state(entry)
    param, _, mean, square = step.tensors()
    for flat, tensor in ((param, entry.target), (mean, state["exp_avg"]), (square, state["exp_avg_sq"])):
        if not tensor.is_contiguous():
            tensor.copy_(flat.view(tensor.shape))


def share_at(group: Mapping[str, Any], step: int) -> float:
    """Share of the coordinates that move in step 1, 2, ...: linear from ``fraction`` to ``final_fraction``."""
    start, end, steps = group["fraction"], group["final_fraction"], group["anneal_steps"]
    if end is None:
        return start
    return end if step > steps else start + (end - start) * (step - 1) / steps


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
