"""Muon: momentum, orthogonalized before it moves the hidden matrices; AdamW for everything else.

One optimizer with two kinds of group, so that Lightning's automatic optimization, accumulation and schedules keep
working. A fused query-key-value matrix is orthogonalized block by block, a LoRA adapter factor by factor or, with
``adapters: paired``, together with the other factor (``lora_muon.py``). Blocks of one shape are stacked (``stacks.py``)
and shared out over the ranks that hold them (``exchange.py``), or moved in place (``muon_in_place.py``); form and
precision of the iterations are in ``ns_choice.py``. Given up: a stack holds blocks of one parameter group, not of
several.

The momentum is a sum of past gradients, as in SGD, and not their mean: without orthogonalization Muon is SGD with
momentum. With it the two are the same, since the polar factor has no scale; a buffer of torch.optim.Muon is (1 -
momentum) times ours. For the same reason gradient clipping leaves Muon's groups alone: a factor on the gradient changes
only the weight of one step's gradient in the momentum.

Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025, Muon is Scalable for LLM Training,
arXiv 2502.16982.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
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
    decay_by_role,
    require_roles,
)
from lit_consistency.optimizers.core.workspace import Workspace
from lit_consistency.optimizers.groups import ROLES
from lit_consistency.optimizers.lora_muon import Pairs
from lit_consistency.optimizers.muon_groups import MATRIX_ROLES, check_matrices, names_of, rated
from lit_consistency.optimizers.muon_step import (
    LR_SCALES,
    LrScale,
    directions,
    momentum_buffer,
    move,
    normalize_rows,
    row_second_moment,
    shape_scale,
    warm_momentum,
)
from lit_consistency.optimizers.orthogonal.choice import NS_DTYPES, NS_FORMS, NSDtype, NSForm, choose, orthogonalize
from lit_consistency.optimizers.orthogonal.in_place_cpu import move_in_place, moves_in_place
from lit_consistency.optimizers.orthogonal.newton_schulz import ITERATIONS, Coefficients
from lit_consistency.optimizers.sharding.exchange import Alone, exchange_of
from lit_consistency.optimizers.sharding.stacks import runs

Adapters = Literal["factor", "paired"]
ADAPTERS = ("factor", "paired")


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
            at least 1.5 times the other, and on CUDA measures large blocks. ``choices()`` tells what was taken.
        ns_dtype: precision of the iterations: ``auto`` is bfloat16 on CUDA; on a CPU float32, but for blocks with
            more than 256 on the short side the measured faster one; float64 stays float64. Take ``float32`` for
            gradients of low rank, as small batches have: bfloat16 amplifies the noise beside them.
        lr_scale: factor on lr for a block of (rows, columns): ``match_rms_adamw`` 0.2 sqrt(max(rows, columns)),
            ``original`` sqrt(max(1, rows / columns)), ``spectral`` sqrt(rows / columns).
        cautious_decay: weight decay only where it and the update pull the same way (arXiv 2510.12402).
        normuon: divide each row of the update by the root of the running mean of its square (arXiv 2510.05491).
        normuon_beta2: decay rate of that mean, in [0, 1).
        momentum_warmup_steps: steps over which the momentum rises linearly from 0.85, as in modded-nanogpt; 0: none.
        role_lr: role -> factor on the learning rate of its groups, at least 0; roles that are not named have 1.
        adapters: LoRA's factors: ``factor`` orthogonalizes each by itself, ``paired`` moves their product as Muon would
            (arXiv 2606.12921), in float32 whatever ``ns_form`` and ``ns_dtype``; see ``lora_muon.py``.
        share_work: ranks that hold the same parameters share the orthogonalization out (DDP). Turn it off where the
            ranks of a process group train different models. Sharded parameters are always shared out.
        adamw_lr: learning rate of the rest, at least 0.
        adamw_betas: decay rates of the rest's running means, each in [0, 1).
        adamw_eps: added to the rest's denominator, at least 0.
        adamw_weight_decay: decoupled weight decay of the rest, at least 0.
        decay_roles: roles of the parameters that shrink.
        low_precision: how parameters in bfloat16 or float16 move: ``master`` moves a float32 copy and rounds it to
            them; ``stochastic`` rounds each step up or down by chance; ``nearest`` rounds it, and loses small ones.
        seed: of stochastic rounding, a function of seed, parameter name and step.
    """

    keeps_update = True  # whether ``update_of_blocks`` is the one below, which large matrices on a CPU may skip

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
        adamw_lr: float = 3e-4,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float = 0.0,
        decay_roles: Sequence[str] = DECAY_ROLES,
        low_precision: LowPrecision = "master",
        seed: int = 0,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            check_at_least(name, value, 0)
        check_count("ns_steps", ns_steps, 1)
        check_count("momentum_warmup_steps", momentum_warmup_steps, 0)
        check_below_one("momentum", momentum)
        check_below_one("normuon_beta2", normuon_beta2)
        check_choice("ns_coefficients", ns_coefficients, ITERATIONS)
        check_choice("ns_form", ns_form, NS_FORMS)
        check_choice("ns_dtype", ns_dtype, NS_DTYPES)
        check_choice("lr_scale", lr_scale, LR_SCALES)
        check_choice("adapters", adapters, ADAPTERS)
        check_adam(adamw_lr, adamw_betas, adamw_eps, adamw_weight_decay, prefix="adamw_")
        check_choices("decay_roles", decay_roles, ROLES)
        with_roles = rated(require_roles("Muon", groups), {"matrices": lr, "rest": adamw_lr}, role_lr or {})
        for_matrices: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov}
        for_matrices |= {"ns_steps": ns_steps, "ns_coefficients": ns_coefficients}
        for_matrices |= {"ns_form": ns_form, "ns_dtype": ns_dtype, "ns_choices": {}, "steps_taken": 0}
        for_matrices |= {"cautious_decay": cautious_decay, "normuon_beta2": normuon_beta2 if normuon else None}
        for_matrices |= {"momentum_warmup_steps": momentum_warmup_steps, "adapters": adapters}
        # gradient clipping reads `orthogonalized`: an orthogonalized update has no scale that could be clipped
        for_matrices |= {"lr_scale": lr_scale, "orthogonalized": orthogonalize}
        for_rest = {"betas": tuple(adamw_betas), "eps": adamw_eps, "orthogonalized": False}
        matrices = [for_matrices | {"ns_choices": {}} | g for g in with_roles if g["role"] in MATRIX_ROLES]
        rest = [for_rest | group for group in with_roles if group["role"] not in MATRIX_ROLES]
        decayed = decay_by_role(matrices, weight_decay, decay_roles) + decay_by_role(
            rest, adamw_weight_decay, decay_roles
        )
        check_matrices(decayed)
        super().__init__(decayed, {"lr": lr, "weight_decay": weight_decay}, low_precision, seed)
        self.share_work = share_work
        self.workspace = Workspace()
        self._pairs = Pairs(self.param_groups, normuon, cautious_decay) if adapters == "paired" else None
        for group in self._matrix_groups():
            for name, param in zip(names_of(group), group["params"], strict=True):
                exchange_of(name, param, share_work)

    def _matrix_groups(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["role"] in MATRIX_ROLES]

    def update_group(self, group: dict[str, Any], entries: list[Entry]) -> None:
        """One Muon step of a group of matrices, or one AdamW step of another."""
        if group["role"] not in MATRIX_ROLES:
            update_adamw(entries, group)
            return
        step = group["steps_taken"]
        options = group | {"momentum": warm_momentum(group["momentum"], step, group["momentum_warmup_steps"])}
        if self._pairs is not None and group["role"] == "adapter" and group["orthogonalized"]:
            self._pairs.update(self, group, entries, options["momentum"])
        else:
            for exchange, alike in self._alike(entries):
                for chunk in chunks(alike, exchange.limit(alike[0].target.device)):
                    self._update_alike(options, chunk, exchange)
        group["steps_taken"] = step + 1

    def _alike(self, entries: Sequence[Entry]) -> Iterator[tuple[Alone, list[Entry]]]:
        """Entries of one global shape, dtype, device and way of exchange."""
        found: defaultdict[tuple[Any, ...], list[Entry]] = defaultdict(list)
        for entry in entries:
            layout = (entry.param.device_mesh, entry.param.placements) if isinstance(entry.param, DTensor) else None
            found[entry.param.shape, entry.param.dtype, entry.param.device, layout].append(entry)
        for alike in found.values():
            yield exchange_of(alike[0].name, alike[0].param, self.share_work), alike

    def _update_alike(self, options: dict[str, Any], entries: list[Entry], exchange: Alone) -> None:
        """Move parameters of one shape."""
        if self.keeps_update and moves_in_place(options, entries[0], exchange):
            self._choose(options, entries[0].param, entries[0].target.dtype, exchange)
            move_in_place(options, entries, self.workspace)
            return
        buffers = [momentum_buffer(entry) for entry in entries]
        found = directions(
            buffers, [e.grad for e in entries], momentum=options["momentum"], nesterov=options["nesterov"]
        )
        if options["orthogonalized"]:
            found = self.orthogonalized(options, entries, found, exchange)
        decay: dict[str, Any] = {"weight_decay": options["weight_decay"]}
        decay["cautious_decay"] = options["cautious_decay"] and options["orthogonalized"]
        move([entry.target for entry in entries], found, lr=options["lr"], **decay)

    def orthogonalized(
        self, options: dict[str, Any], entries: Sequence[Entry], found: Sequence[Tensor], exchange: Alone
    ) -> list[Tensor]:
        """Updates of parameters of one shape, from their directions.

        Args:
            options: hyperparameters of the group.
            entries: the parameters.
            found: their directions, local.
            exchange: of the parameters.

        Returns:
            What lies on this rank of the updates, times the scale of their blocks.
        """
        rows, split = entries[0].param.size(-2), options["split"]
        pieces = [[direction] for direction in found]
        seconds = []
        if options["normuon_beta2"] is not None:
            seconds = [row_second_moment(entry) for entry in entries]
            pieces = [[*piece, second] for piece, second in zip(pieces, seconds, strict=True)]
        width = len(pieces[0])
        self._choose(options, entries[0].param, found[0].dtype, exchange)
        if not isinstance(entries[0].param, DTensor) or found[0].numel() or found[0].ndim == 2:
            results = exchange.map(
                pieces,
                [rows] * width,
                [split] * width,
                lambda stacks: self.update_of_blocks(options, stacks),
                range(width),
            )
        else:
            return list(found)  # no matrix of the stacks lies here
        for second, result in zip(seconds, results, strict=False):
            second.copy_(result[1])
        return [result[0] for result in results]

    def _choose(self, options: dict[str, Any], param: Tensor, dtype: torch.dtype, exchange: Alone) -> None:
        """Choose the iterations of every block shape of a parameter, on all ranks at once."""
        whole = torch.empty(param.shape, device="meta")
        for (stack,) in runs([whole], [options["split"]]):
            wanted = options["ns_form"], options["ns_dtype"]
            choose(options["ns_choices"], *wanted, stack.shape, param.device, dtype, exchange.agree)

    def update_of_blocks(self, options: dict[str, Any], stacks: list[Tensor]) -> list[Tensor]:
        """Update of stacked blocks from their directions, times the scale of a block.

        Args:
            options: hyperparameters of the group.
            stacks: the directions (batch, rows, columns), and with NorMuon the running means (batch, rows, 1).

        Returns:
            The update, and with NorMuon the new running means.
        """
        direction = stacks[0]
        wanted, kind = (options["ns_form"], options["ns_dtype"]), (direction.device, direction.dtype)
        choice = choose(options["ns_choices"], *wanted, direction.shape, *kind, lambda number, _: number)
        found = orthogonalize(
            direction, choice, ns_steps=options["ns_steps"], ns_coefficients=options["ns_coefficients"]
        )
        results = [found]
        if len(stacks) > 1:
            results = list(normalize_rows(found, stacks[1], beta=options["normuon_beta2"]))
        results[0].mul_(shape_scale(options["lr_scale"], *direction.shape[-2:]))
        return results

    def choices(self) -> dict[str, str]:
        """Form and precision of the iterations that each block shape takes, e.g. ``cpu 768x3072`` -> ``gram float32``.

        Empty before the first step.
        """
        return {key: choice for group in self._matrix_groups() for key, choice in sorted(group["ns_choices"].items())}


def chunks(entries: Sequence[Entry], limit: float) -> Iterator[list[Entry]]:
    """Consecutive entries with at most ``limit`` elements in all, or one."""
    each = max(1, entries[0].target.numel())
    count = len(entries) if limit == float("inf") else max(1, int(limit // each))
    for start in range(0, len(entries), count):
        yield list(entries[start : start + count])
