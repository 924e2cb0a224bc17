"""Muon: momentum, orthogonalized before it moves the hidden matrices; AdamW for everything else.

One optimizer with two kinds of group, so that Lightning's automatic optimization, accumulation and schedules keep
working. A fused query-key-value matrix is orthogonalized block by block, a LoRA adapter factor by factor or, with
``adapters: paired``, together with the other factor (``lora_muon.py``). The step stands below the class, function by
function; ``orthogonal/`` makes polar factors of its directions. Given up: a stack holds blocks of one parameter group,
not of several.

The momentum is a sum of past gradients, as in SGD, and not their mean: without orthogonalization Muon is SGD with
momentum. With it the two are the same, since the polar factor has no scale; a buffer of torch.optim.Muon is (1 -
momentum) times ours. For the same reason gradient clipping leaves Muon's groups alone: a factor on the gradient changes
only the weight of one step's gradient in the momentum.

Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025, Muon is Scalable for LLM Training,
arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lit_consistency.optimizers.adamw import update_adamw
from lit_consistency.optimizers.core.checks import (
    check_adam,
    check_at_least,
    check_below_one,
    check_choice,
    check_choices,
    check_count,
)
from lit_consistency.optimizers.core.optimizer import (
    DECAY_ROLES,
    Entry,
    GroupOptimizer,
    LowPrecision,
    check_present,
    local,
    require_roles,
    zeros_of_state,
)
from lit_consistency.optimizers.core.skipping import unchanged_where
from lit_consistency.optimizers.core.workspace import Workspace
from lit_consistency.optimizers.groups import MATRIX_ROLES, ROLES, check_matrices, named_parameters, table_of
from lit_consistency.optimizers.lora_muon import LoRAPairs
from lit_consistency.optimizers.normuon import normalize_rows, row_second_moment
from lit_consistency.optimizers.orthogonal.choice import LrScale, NSDtype, NSForm, choices_of, choose, shape_scale
from lit_consistency.optimizers.orthogonal.orthogonalizer import alike, map_blocks, polar_factors
from lit_consistency.optimizers.orthogonal.polynomials import ITERATIONS, Coefficients
from lit_consistency.optimizers.sharding.exchange import Exchange, exchange_of
from lit_consistency.optimizers.sharding.overlap import Job, in_turn

Adapters = Literal["factor", "paired"]
# Where the warm-up of the momentum starts: github.com/KellerJordan/modded-nanogpt, train_gpt.py, get_muon_momentum
MOMENTUM_START = 0.85


@dataclass(frozen=True)
class MatrixOptions:
    """How a group of matrices moves, beside its ``lr`` and ``weight_decay``; see ``Muon`` for the fields' meaning.

    They stand in the group, so that they are part of the optimizer's state, and are read from there in every step.
    """

    momentum: float
    nesterov: bool
    orthogonalized: bool  # gradient clipping reads it: an orthogonalized update has no scale that could be clipped
    ns_steps: int
    ns_coefficients: Coefficients
    ns_form: NSForm
    ns_dtype: NSDtype
    lr_scale: LrScale
    cautious_decay: bool
    normuon_beta2: float | None  # None: without NorMuon
    momentum_warmup_steps: int
    adapters: Adapters

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> MatrixOptions:
        """The options of a group."""
        return cls(**{field.name: group[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class RestOptions:
    """How a group that is not orthogonalized moves, by AdamW, beside its ``lr`` and ``weight_decay``."""

    betas: tuple[float, float]
    eps: float
    orthogonalized: bool = False


class Muon(GroupOptimizer):
    """Momentum orthogonalized by Newton-Schulz for hidden matrices and adapters, AdamW for the rest.

    Args:
        groups: of ``parameter_groups(model)``.
        lr: learning rate of the matrices, at least 0. With ``match_rms_adamw`` one that suits AdamW suits here.
        momentum: decay rate of the sum of past gradients, in [0, 1).
        nesterov: look one step ahead.
        weight_decay: per step, matrices shrink by lr * weight_decay, whatever ``lr_scale``; at least 0.
        orthogonalize: false turns the matrices' part into SGD with momentum, and what comes after with it.
        ns_steps: Newton-Schulz iterations, at least 1.
        ns_coefficients: polynomials of the iterations: ``polar_express`` (arXiv 2505.16932) or ``quintic`` (Keller
            Jordan's).
        ns_form: ``direct`` iterates on the matrix, ``gram`` on its Gram matrix; ``auto`` takes gram where one side is
            at least 1.5 times the other (2.25 times for large blocks on CUDA). ``choices`` and run.json say what is
            taken.
        ns_dtype: precision of the iterations: ``auto`` is bfloat16 where the hardware multiplies it faster, on CUDA
            from Ampere and on CPUs with AMX for blocks with more than 256 on the short side, and float32 elsewhere;
            float64 stays float64. Take ``float32`` for gradients of low rank, as small batches have: bfloat16
            amplifies the noise beside them.
        lr_scale: factor on lr for a block of (rows, columns): ``match_rms_adamw`` 0.2 sqrt(max(rows, columns)),
            ``original`` sqrt(max(1, rows / columns)), ``spectral`` sqrt(rows / columns).
        cautious_decay: weight decay only where it and the update pull the same way (arXiv 2510.12402).
        normuon: divide each row of the update by the root of the running mean of its square (arXiv 2510.05491), and
            scale the block back to the norm that it had, as modded-nanogpt does; see ``normalize_rows``.
        normuon_beta2: decay rate of that mean, in [0, 1).
        momentum_warmup_steps: steps over which the momentum rises linearly from 0.85, as in modded-nanogpt; 0: none.
        role_lr: role -> factor on the learning rate of its groups, at least 0; roles that are not named have 1.
        adapters: LoRA's factors: ``factor`` orthogonalizes each by itself, ``paired`` moves their product as Muon would
            (arXiv 2606.12921), in float32 whatever ``ns_form`` and ``ns_dtype``; see ``lora_muon.py``.
        share_work: ranks that hold the same parameters (DDP), or the same shards (HSDP), share the orthogonalization
            out. Turn it off where the ranks train different models. Among the shards it is always shared out.
        adamw_lr: learning rate of the rest, at least 0; null follows lr: adamw_lr_ratio * lr.
        adamw_lr_ratio: learning rate of the rest over lr where adamw_lr is null, at least 0.
        adamw_betas: decay rates of the rest's running means, each in [0, 1).
        adamw_eps: added to the rest's denominator, above 0.
        adamw_weight_decay: decoupled weight decay of the rest, at least 0.
        decay_roles: roles of the parameters that shrink.
        low_precision: how parameters in bfloat16 or float16 move: ``master`` moves a float32 copy and rounds it to
            them; ``stochastic`` rounds each step up or down by chance; ``nearest`` rounds it, and loses small ones.
        seed: of stochastic rounding, a function of seed, parameter name and step.
    """

    def __init__(
        self,
        groups: ParamsT,
        lr: float = 3e-4,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        orthogonalize: bool = True,
        ns_steps: int = 5,
        ns_coefficients: Coefficients = "polar_express",
        ns_form: NSForm = "auto",
        ns_dtype: NSDtype = "auto",
        lr_scale: LrScale = "match_rms_adamw",
        cautious_decay: bool = False,
        normuon: bool = False,
        normuon_beta2: float = 0.95,
        momentum_warmup_steps: int = 0,
        role_lr: Mapping[str, float] | None = None,
        adapters: Adapters = "factor",
        share_work: bool = True,
        adamw_lr: float | None = None,
        adamw_lr_ratio: float = 1.0,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float = 0.0,
        decay_roles: Sequence[str] = DECAY_ROLES,
        low_precision: LowPrecision = "master",
        seed: int = 0,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("adamw_lr_ratio", adamw_lr_ratio)):
            check_at_least(name, value, 0)
        check_count("ns_steps", ns_steps, 1)
        check_count("momentum_warmup_steps", momentum_warmup_steps, 0)
        check_below_one("momentum", momentum)
        check_below_one("normuon_beta2", normuon_beta2)
        check_choice("ns_coefficients", ns_coefficients, ITERATIONS)
        check_choice("ns_form", ns_form, get_args(NSForm))
        check_choice("ns_dtype", ns_dtype, get_args(NSDtype))
        check_choice("lr_scale", lr_scale, get_args(LrScale))
        check_choice("adapters", adapters, get_args(Adapters))
        if adamw_lr is not None and adamw_lr_ratio != 1:
            raise ValueError(f"adamw_lr_ratio = {adamw_lr_ratio}: expected adamw_lr = null with it, got {adamw_lr}")
        rest_lr = adamw_lr_ratio * lr if adamw_lr is None else adamw_lr
        check_adam(rest_lr, adamw_betas, adamw_eps, adamw_weight_decay, prefix="adamw_")
        check_choices("decay_roles", decay_roles, ROLES)
        self.for_matrices = MatrixOptions(
            momentum=momentum,
            nesterov=nesterov,
            orthogonalized=orthogonalize,
            ns_steps=ns_steps,
            ns_coefficients=ns_coefficients,
            ns_form=ns_form,
            ns_dtype=ns_dtype,
            lr_scale=lr_scale,
            cautious_decay=cautious_decay,
            normuon_beta2=normuon_beta2 if normuon else None,
            momentum_warmup_steps=momentum_warmup_steps,
            adapters=adapters,
        )
        self.for_rest = RestOptions(betas=(adamw_betas[0], adamw_betas[1]), eps=adamw_eps)
        self.rates = {"matrices": (lr, weight_decay), "rest": (rest_lr, adamw_weight_decay)}
        groups = require_roles("Muon", groups)
        self.role_lr = dict(role_lr or {})
        check_choices("role_lr", list(self.role_lr), ROLES)
        check_present("role_lr", self.role_lr, groups)
        for role, factor in self.role_lr.items():
            check_at_least(f"role_lr.{role}", factor, 0)
        if not any(group["role"] in MATRIX_ROLES and group["params"] for group in groups):
            raise ValueError(f"Muon: expected a hidden matrix or an adapter to train, got\n{table_of(groups)}")
        self.share_work = share_work
        self.pairs: LoRAPairs | None = None
        self.workspace = Workspace()
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay}, low_precision, seed, decay_roles)
        if adapters == "paired":
            self.pairs = LoRAPairs(self.param_groups, normuon, cautious_decay)
        self.heeds_found_inf = self.pairs is None  # the pairs' eigenvalues make the program wait anyway

    def complete_group(self, group: dict[str, Any]) -> dict[str, Any]:
        """A group with the options, the learning rate and the weight decay of its role; its own are kept.

        Raises:
            ValueError: it has no role, holds matrices that cannot be orthogonalized, or adapters come late for pairs.
        """
        (group,) = require_roles("Muon", [super().complete_group(group)])
        group["params"] = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        of_matrices = group["role"] in MATRIX_ROLES
        if of_matrices:
            check_matrices(group)
            for name, param in named_parameters(group):
                exchange_of(name, param, self.share_work)
        if self.pairs is not None and group["role"] == "adapter":
            raise ValueError("adapters = paired: expected all adapters at construction, got a group of them later")
        lr, weight_decay = self.rates["matrices" if of_matrices else "rest"]
        own = {"lr": lr * self.role_lr.get(group["role"], 1.0), "weight_decay": weight_decay}
        options = asdict(self.for_matrices) | {"steps_taken": 0} if of_matrices else asdict(self.for_rest)
        return options | own | group

    def update_group(self, group: dict[str, Any], entries: list[Entry]) -> None:
        """One Muon step of a group of matrices, or one AdamW step of another."""
        if group["role"] not in MATRIX_ROLES:
            update_adamw(entries, group, self.found_inf)
            return
        options = MatrixOptions.of(group)
        if self.pairs is not None and group["role"] == "adapter" and options.orthogonalized:
            self.pairs.update(self, group, entries)
        else:
            in_turn(self._step(group, options, some, exchange) for exchange, some in alike(entries, self.share_work))
        group["steps_taken"] += 1

    def _step(
        self, group: Mapping[str, Any], options: MatrixOptions, entries: Sequence[Entry], exchange: Exchange
    ) -> Job[None]:
        """One step of parameters of one shape; see ``sharding/overlap.py`` for what a job is."""
        updates = self.directions(group, entries)
        if options.orthogonalized:
            updates = yield from self._orthogonalized(group, options, entries, updates, exchange)
        cautious = options.cautious_decay and options.orthogonalized
        targets = [entry.target for entry in entries]
        with unchanged_where(self.found_inf, targets):
            move(targets, updates, lr=group["lr"], weight_decay=group["weight_decay"], cautious_decay=cautious)

    def directions(self, group: Mapping[str, Any], entries: Sequence[Entry]) -> list[Tensor]:
        """Local directions of parameters of one group, whose momentum takes up their gradients."""
        momentum = warm_momentum(group["momentum"], group["steps_taken"], group["momentum_warmup_steps"])
        buffers, grads = [momentum_buffer(entry) for entry in entries], [entry.grad for entry in entries]
        with unchanged_where(self.found_inf, buffers):
            return momentum_directions(buffers, grads, momentum=momentum, nesterov=group["nesterov"])

    def _orthogonalized(
        self,
        group: Mapping[str, Any],
        options: MatrixOptions,
        entries: Sequence[Entry],
        directions: Sequence[Tensor],
        exchange: Exchange,
    ) -> Job[list[Tensor]]:
        """What lies on this rank of the updates of parameters of one shape, from their directions."""
        seconds = [row_second_moment(entry) for entry in entries] if options.normuon_beta2 is not None else []
        pieces = list(zip(directions, seconds, strict=True)) if seconds else [(one,) for one in directions]
        tensors = len(pieces[0])
        results = yield from map_blocks(
            exchange,
            pieces,
            rows=[entries[0].param.size(-2)] * tensors,
            splits=[group["split"]] * tensors,
            function=partial(self.update_of_blocks, group, options),
            like=range(tensors),
        )
        with unchanged_where(self.found_inf, seconds):
            for second, result in zip(seconds, results, strict=False):
                second.copy_(result[1])
        return [result[0] for result in results]

    def update_of_blocks(self, group: Mapping[str, Any], options: MatrixOptions, stacks: list[Tensor]) -> list[Tensor]:
        """Update of stacked blocks from their directions, times the scale of a block.

        Args:
            group: of the blocks.
            options: of the group.
            stacks: the directions (batch, rows, columns), and with NorMuon the running means (batch, rows, 1).

        Returns:
            The update, and with NorMuon the new running means.
        """
        direction, rows, columns = stacks[0], *stacks[0].shape[-2:]
        choice = choose(options.ns_form, options.ns_dtype, rows, columns, direction.device, direction.dtype)
        iterations: dict[str, Any] = {"ns_steps": options.ns_steps, "ns_coefficients": options.ns_coefficients}
        scale = shape_scale(options.lr_scale, rows, columns)
        if options.normuon_beta2 is None:
            return [polar_factors(direction, choice, **iterations, scale=scale, workspace=self.workspace)]
        polar = polar_factors(direction, choice, **iterations, workspace=self.workspace)
        update, second = normalize_rows(polar, stacks[1], beta=options.normuon_beta2)
        return [update.mul_(scale), second]

    @property
    def choices(self) -> list[dict[str, Any]]:
        """Form and precision of the iterations of every block shape, a row each: device, shape, form, dtype."""
        orthogonalized = [group for group in self.param_groups if group["orthogonalized"]]
        return choices_of(orthogonalized, paired=self.pairs is not None)

    def record(self) -> dict[str, Any]:
        """For run.json: what ``auto`` of form and precision means on this machine."""
        return {"newton_schulz": self.choices}


# -------------------- the step, function by function


def momentum_directions(
    momentum_buffers: Sequence[Tensor], grads: Sequence[Tensor], *, momentum: float, nesterov: bool
) -> list[Tensor]:
    r"""Directions of heavy-ball or Nesterov momentum, a sum and not a mean of past gradients.

    .. math::
        b \leftarrow \mu b + g, \quad d = g + \mu b \text{ (Nesterov)} \quad \text{or} \quad d = b

    Args:
        momentum_buffers: b of each parameter, float32 or float64; changed in place.
        grads: g, of any float dtype, only read.
        momentum: decay rate :math:`\mu` of the buffers.
        nesterov: which of the two directions.

    Returns:
        The directions; the buffers themselves without ``nesterov``: only read them.
    """
    if not momentum_buffers:
        return []
    buffers = list(momentum_buffers)
    converted = [grad.to(buffers[0].dtype) for grad in grads]
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, converted)
    return list(torch._foreach_add(converted, buffers, alpha=momentum)) if nesterov else buffers


def warm_momentum(momentum: float, step: int, warmup_steps: int) -> float:
    """The momentum of a step: rises linearly from 0.85, or stays where that is not less.

    Args:
        momentum: after the warm-up.
        step: number of steps before this one.
        warmup_steps: length of the warm-up; 0 for none.
    """
    if step >= warmup_steps or momentum <= MOMENTUM_START:
        return momentum
    return MOMENTUM_START + (momentum - MOMENTUM_START) * step / warmup_steps


def move(
    targets: Sequence[Tensor], updates: Sequence[Tensor], *, lr: float, weight_decay: float, cautious_decay: bool
) -> None:
    r"""Decay and move each parameter.

    .. math::
        p \leftarrow p - \eta \lambda \, \mathbb{1}[u p \ge 0] \, p - \eta u \quad
        \text{(without cautious\_decay every coordinate decays)}

    Args:
        targets: changed in place.
        updates: u, of the targets' shapes, scaled for their blocks; only read.
        lr: learning rate.
        weight_decay: coefficient of the decoupled weight decay.
        cautious_decay: only coordinates decay that the update moves towards zero, or not at all; Chen et al. 2025,
            Cautious Weight Decay, arXiv 2510.12402.
    """
    if not targets:
        return
    if weight_decay and cautious_decay:
        for target, update in zip(targets, updates, strict=True):
            target.sub_((update * target >= 0) * target, alpha=lr * weight_decay)
    elif weight_decay:
        torch._foreach_mul_(list(targets), 1 - lr * weight_decay)
    torch._foreach_add_(list(targets), list(updates), alpha=-lr)


def momentum_buffer(entry: Entry) -> Tensor:
    """Local sum of a parameter's past gradients, made and kept in its state at the first call."""
    if "momentum_buffer" not in entry.state:
        entry.state["momentum_buffer"] = zeros_of_state(entry.param)
    return local(entry.state["momentum_buffer"])
