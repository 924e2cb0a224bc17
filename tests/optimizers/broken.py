"""Optimizers that break one promise each, as users' do; found by path, so that other processes can import them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class SignDescent(torch.optim.Optimizer):
    """Keeps every promise but that of bfloat16; the others differ from it by one.

    Args:
        params: groups.
        lr: learning rate.
    """

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        if lr < 0:
            raise ValueError(f"lr = {lr}: expected at least 0")
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(group, parameter, parameter.grad)
        return loss

    def move(self, group: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        state = self.state[parameter]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(parameter)
        state["mean"].lerp_(grad, 0.5)
        parameter.sub_(state["mean"].sign(), alpha=group["lr"])


class ClosureTwice(SignDescent):
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is not None:
            with torch.enable_grad():
                closure()
        return super().step(closure)


class ClosureUnreturned(SignDescent):
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        super().step(closure)


class GradientsChanged(SignDescent):
    def move(self, group: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        super().move(group, parameter, grad.div_(grad.norm()))


class NothingMoves(SignDescent):
    def move(self, group: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        pass


class EveryParameterDecays(SignDescent):
    """Also where there is no gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - 0.1 * group["lr"])
        return super().step(closure)


class RateRemembered(SignDescent):
    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr)
        self.rate = lr

    def move(self, group: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        super().move({"lr": self.rate}, parameter, grad)


class CountUnsaved(SignDescent):
    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr)
        self.count = 0

    def move(self, group: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        self.count += 1
        super().move({"lr": group["lr"] / self.count}, parameter, grad)


class ObjectInState(SignDescent):
    def move(self, group: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        self.state[parameter]["helper"] = self.__class__
        super().move(group, parameter, grad)


class NoRoles(SignDescent):
    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__([{"params": [p for _, p in group["params"]]} for group in params], lr)


class ClippedByItself(SignDescent):
    _step_supports_amp_scaling = True


class MastersLost(SignDescent):
    """Its float32 masters become bfloat16 when torch loads them."""

    def move(self, group: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        state = self.state[parameter]
        if "master" not in state:
            state["master"] = parameter.float()
        state["master"] = state["master"].float() - group["lr"] * grad.float().sign()
        parameter.copy_(state["master"])


class ShardNormalized(SignDescent):
    """Divides by the norm of what lies on this rank, where that of the whole gradient is meant."""

    def move(self, group: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        values, slope = (x.to_local() if isinstance(x, DTensor) else x for x in (parameter, grad))
        values.sub_(slope / slope.norm().clamp(min=1e-12), alpha=group["lr"])


class RankDependent(SignDescent):
    """Draws numbers of its own on every rank."""

    def move(self, group: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        super().move({"lr": group["lr"] * (1 + rank)}, parameter, grad)
