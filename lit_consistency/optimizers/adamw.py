"""AdamW: Adam with decoupled weight decay.

Equal to ``torch.optim.AdamW``, with the moments in float32 for parameters of any precision. The fused kernel of torch
is called where it can be (3 to 5 times as fast as torch's default on a CPU), without declaring support for gradient
scaling, which would forbid clipping. Given up: amsgrad, maximize, tensors as learning rates.

Source: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, arXiv 1711.05101.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import ParamsT

from lit_consistency.optimizers.core.checks import check_adam, check_choices
from lit_consistency.optimizers.core.optimizer import (
    DECAY_ROLES,
    Entry,
    GroupOptimizer,
    LowPrecision,
    local,
    state_dtype,
    zeros_of_state,
)
from lit_consistency.optimizers.core.skipping import unchanged_where
from lit_consistency.optimizers.groups import ROLES

# gradient elements cast to float32 at a time: 1 MiB of them on a CPU, where they stay in the cache
CAST_AT_ONCE = 2**18
CAST_AT_ONCE_CUDA = 2**24
# a step's tensors of one parameter: param, grad, exp_avg, exp_avg_sq, step
Row = tuple[Tensor, ...]


class AdamW(GroupOptimizer):
    """Adam with decoupled weight decay.

    Args:
        groups: of ``parameter_groups(model)``, or parameters as for any optimizer of torch.
        lr: learning rate, at least 0.
        betas: decay rates of the running means of the gradient and of its square, each in [0, 1).
        eps: added to the denominator, above 0.
        weight_decay: per step, parameters shrink by lr * weight_decay; at least 0.
        decay_roles: roles of the parameters that shrink.
        low_precision: how parameters in bfloat16 or float16 move: ``master`` moves a float32 copy and rounds it to
            them; ``stochastic`` rounds each step up or down by chance; ``nearest`` rounds it, and loses small ones.
        seed: of stochastic rounding, a function of seed, parameter name and step.
    """

    elements_at_once = 2**24
    heeds_found_inf = True

    def __init__(
        self,
        groups: ParamsT,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay_roles: Sequence[str] = DECAY_ROLES,
        low_precision: LowPrecision = "master",
        seed: int = 0,
    ) -> None:
        check_adam(lr, betas, eps, weight_decay)
        check_choices("decay_roles", decay_roles, ROLES)
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults, low_precision, seed, decay_roles)

    def update_group(self, group: dict[str, Any], entries: list[Entry]) -> None:
        """One AdamW step of the group."""
        update_adamw(entries, group, self.found_inf)


def update_adamw(entries: Sequence[Entry], group: Mapping[str, Any], found_inf: Tensor | None = None) -> None:
    """One AdamW step of ``entries`` with the hyperparameters of ``group``, in place.

    Args:
        entries: parameters that have a gradient; ``step``, ``exp_avg`` and ``exp_avg_sq`` are made in their state at
            the first step.
        group: ``lr``, ``betas``, ``eps``, ``weight_decay``.
        found_inf: flag of a step that changes nothing.
    """
    if not entries:
        return
    _, params, targets, grads, states = zip(*entries, strict=True)
    if not all("exp_avg" in state for state in states):
        for entry in entries:
            adamw_state(entry)
    columns = [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step")]
    if DTensor in set(map(type, params)):
        columns = [[local(tensor) for tensor in column] for column in columns]
    adamw_step(
        targets,
        grads,
        *columns,
        lr=group["lr"],
        betas=group["betas"],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        found_inf=found_inf,
    )


def adamw_state(entry: Entry) -> dict[str, Tensor]:
    """Local ``step``, ``exp_avg`` and ``exp_avg_sq`` of a parameter, made and kept in its state at the first call."""
    if "exp_avg" not in entry.state:
        # a bfloat16 counter would stop at 256
        entry.state["step"] = torch.zeros((), dtype=torch.float32, device=entry.param.device)
        entry.state["exp_avg"] = zeros_of_state(entry.param)
        entry.state["exp_avg_sq"] = zeros_of_state(entry.param)
    return {key: local(entry.state[key]) for key in ("step", "exp_avg", "exp_avg_sq")}


def adamw_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    found_inf: Tensor | None = None,
) -> None:
    r"""One AdamW step of each parameter.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        p \leftarrow (1 - \eta \lambda) p - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Args:
        params: changed in place, any float dtype.
        grads: gradients, of the parameters' shapes and any float dtype; only read.
        exp_avgs: running means m, float32 or float64; changed in place.
        exp_avg_sqs: running means v, likewise.
        steps: counters t before this step, float32 of shape (), on the parameters' devices; each grows by 1.
        lr: learning rate.
        betas: the two decay rates.
        eps: added to the denominator.
        weight_decay: the coefficient of the decoupled weight decay.
        found_inf: flag of a step that changes nothing, float32 of shape (), which the kernel reads; None for no flag.
    """
    if not params:
        return
    torch._foreach_add_(list(steps), 1)
    options: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    if are_alike(params, grads, exp_avgs, exp_avg_sqs):
        _adamw_fused([params, grads, exp_avgs, exp_avg_sqs, steps], found_inf=found_inf, **options)
    else:
        _adamw_by_kinds(zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True), found_inf, options)
    if found_inf is not None:
        torch._foreach_sub_(list(steps), [found_inf] * len(steps))


def _adamw_by_kinds(rows: Iterable[Row], found_inf: Tensor | None, options: dict[str, Any]) -> None:
    """``adamw_step`` of tensors of several dtypes, devices or memory layouts, whose counters have grown."""
    # the fused kernel wants one dtype and one device in each call
    fused: defaultdict[tuple[torch.device, torch.dtype, torch.dtype], list[Row]] = defaultdict(list)
    for row in rows:
        if can_fuse(*row[:4]):
            fused[row[0].device, row[0].dtype, row[1].dtype].append(row)
        else:
            with unchanged_where(found_inf, (row[0], row[2], row[3])):
                _adamw_eager(*row, **options)
    for (device, dtype, grad_dtype), alike in fused.items():
        for portion in [alike] if grad_dtype == dtype else _portions(alike, device):
            columns = [list(column) for column in zip(*portion, strict=True)]
            columns[1] = [grad.to(dtype) for grad in columns[1]]
            _adamw_fused(columns, found_inf=found_inf, **options)


def are_alike(params: Sequence[Tensor], *others: Sequence[Tensor]) -> bool:
    """Whether one call of the fused kernel takes all of these: one float dtype, one device, all contiguous."""
    tensors = [*params, *chain.from_iterable(others)]
    return (
        len({tensor.dtype for tensor in tensors}) == 1
        and len(set(map(Tensor.get_device, params))) == 1
        and all(map(Tensor.is_contiguous, tensors))
        and can_fuse(params[0])
    )


def can_fuse(param: Tensor, *others: Tensor) -> bool:
    """Whether torch's fused kernel takes these tensors, after a cast of the gradient, which is the first of ``others``.

    They must be float32 or float64, contiguous, and on a CPU or a CUDA device.
    """
    return (
        param.device.type in ("cpu", "cuda")
        and param.dtype in (torch.float32, torch.float64)
        and param.is_contiguous()
        and all(t.is_contiguous() for t in others)
        and all(t.dtype == param.dtype for t in others[1:])
    )


def _portions(rows: Sequence[Row], device: torch.device) -> Iterator[list[Row]]:
    """Rows of at most ``CAST_AT_ONCE`` elements together; tensors above that are cut, flat, and keep their counter."""
    at_once = CAST_AT_ONCE if device.type == "cpu" else CAST_AT_ONCE_CUDA
    portion: list[Row] = []
    elements = 0
    for *tensors, step in rows:
        if tensors[0].numel() > at_once:
            cuts = list(zip(*(tensor.view(-1).split(at_once) for tensor in tensors), strict=True))
        else:
            cuts = [tuple(tensors)]
        for cut in cuts:
            if portion and elements + cut[0].numel() > at_once:
                yield portion
                portion, elements = [], 0
            portion.append((*cut, step))
            elements += cut[0].numel()
    yield portion


def _adamw_fused(
    columns: Sequence[Sequence[Tensor]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    found_inf: Tensor | None,
) -> None:
    """``adamw_step`` of tensors of one dtype and device, a list for each of ``Row``, whose counters have grown."""
    params, grads, exp_avgs, exp_avg_sqs, steps = map(list, columns)
    torch._fused_adamw_(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
        found_inf=found_inf,
    )


def bias_correction(beta: float, step: Tensor, dtype: torch.dtype) -> Tensor:
    """1 - beta ** step, shape (), without cancellation in float32 and without waiting for the device."""
    if beta == 0:
        return torch.ones_like(step, dtype=dtype)
    return -torch.expm1(step.to(dtype) * math.log(beta))


def _adamw_eager(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """``adamw_step`` of one parameter whose counter has grown, computed in the state's dtype and rounded once."""
    dtype = state_dtype(param)
    grad = grad.to(dtype)
    exp_avg.lerp_(grad, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    denominator = exp_avg_sq.div(bias_correction(betas[1], step, dtype)).sqrt_().add_(eps)
    update = exp_avg.div(bias_correction(betas[0], step, dtype)).div_(denominator)
    param.copy_(param.to(dtype).mul(1 - lr * weight_decay).sub_(update, alpha=lr))
