"""MoFO as the paper's algorithm reads, tensor by tensor with torch.topk: slow, what MoFO is compared with."""

from __future__ import annotations

import math
from typing import Any

import torch


class TopkMoFO(torch.optim.Optimizer):
    """AdamW whose step is multiplied by the mask of the largest momenta; ``split`` of a group as in ``MoFO``."""

    def __init__(self, groups: Any, lr: float = 3e-4, fraction: float = 0.15) -> None:
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "fraction": fraction, "split": None})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                self._move(parameter, group)

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        (beta1, beta2), state = group["betas"], self.state[parameter]
        if not state:
            state.update(t=0, m=torch.zeros_like(parameter), v=torch.zeros_like(parameter))
        state["t"] += 1
        state["m"] = beta1 * state["m"] + (1 - beta1) * parameter.grad
        state["v"] = beta2 * state["v"] + (1 - beta2) * parameter.grad**2
        update = state["m"] / (1 - beta1 ** state["t"])
        update = update / ((state["v"] / (1 - beta2 ** state["t"])).sqrt() + group["eps"])
        rows = list(group["split"] or [len(parameter)])
        for block, part, momentum in zip(
            parameter.split(rows), update.split(rows), state["m"].abs().split(rows), strict=True
        ):
            threshold = momentum.flatten().topk(math.ceil(group["fraction"] * momentum.numel())).values[-1]
            block.sub_(group["lr"] * part * (momentum >= threshold))
