"""MoFO as one would write it down: a sort of the momentum, a mask, then Adam's formula, tensor by tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class TopkMoFO(torch.optim.Optimizer):
    """AdamW on the ``fraction`` of each tensor's coordinates with the largest momentum, by ``torch.topk``.

    Source: Chen et al. 2025, arXiv 2407.20999, algorithm 1.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fraction: float = 0.15,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fraction": fraction}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._move(param, param.grad, group)
        return loss

    def _move(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        state.setdefault("step", 0)
        m = state.setdefault("exp_avg", torch.zeros_like(param))
        v = state.setdefault("exp_avg_sq", torch.zeros_like(param))
        state["step"] += 1
        beta1, beta2 = group["betas"]
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        k = max(1, int(param.numel() * group["fraction"]))
        mask = m.abs() >= m.abs().flatten().topk(k).values.min()
        m_hat, v_hat = m / (1 - beta1 ** state["step"]), v / (1 - beta2 ** state["step"])
        step = m_hat / (v_hat.sqrt() + group["eps"]) + group["weight_decay"] * param
        param.sub_(group["lr"] * step * mask)
