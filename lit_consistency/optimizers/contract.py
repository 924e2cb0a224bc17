"""What a run expects of an optimizer, as checks of any class; the tests and ``check-optimizer`` call the same ones.

A check takes ``build``, which makes the optimizer over the groups of ``parameter_groups``, and ``model``, which gives
the same small model at every call. It steps with random gradients, and raises ``Broken`` with what it saw. What needs
several processes stands in distributed/optimizer_contract.py. Given up: CUDA; what a class does there is not looked at.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_consistency.optimizers.core.optimizer import local
from lit_consistency.optimizers.groups import parameter_groups

Build = Callable[[list[dict[str, Any]]], Optimizer]
Model = Callable[[], nn.Module]
GAP = 2.0**-8  # of bfloat16 below 1; above 1 it is twice as wide
SMALL_STEPS = 64


class Broken(AssertionError):
    """A promise that an optimizer does not keep; the message says what was seen and what it costs a run."""


# -------------------- steps with known gradients


def set_grads(model: nn.Module, seed: int) -> None:
    """Give every trainable parameter a random gradient; those of a seed are the same for models of any precision."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def run(optimizer: Optimizer, model: nn.Module, seeds: range) -> dict[str, Tensor]:
    """Copies of the parameters after one step with the gradients of each seed."""
    for seed in seeds:
        set_grads(model, seed)
        optimizer.step()
    return copies(model)


def copies(model: nn.Module) -> dict[str, Tensor]:
    """Name -> value of every parameter, frozen ones included."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """What is left of a state dict when a checkpoint has held it: read without executing anything in it.

    Raises:
        Broken: it cannot be written, or holds what such a reading refuses.
    """
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=True)
    except Exception as error:  # whatever pickling an unknown object raises
        raise Broken(f"state_dict() goes through no file: {first_line(error)}; expected tensors and numbers") from error


def first_line(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def unequal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Names whose values differ in a bit, or that only one of the two has."""
    missing = sorted(found.keys() ^ expected.keys())
    return missing + [n for n in expected if n in found and not torch.equal(found[n], expected[n])]


# -------------------- the promises


def takes_groups(build: Build, model: Model) -> None:
    """It takes the groups of ``parameter_groups``, and keeps the names, role and split of each."""
    groups = parameter_groups(model())
    expected = {(g["role"], g["split"], tuple(name for name, _ in g["params"])) for g in groups}
    kept = build(groups).param_groups
    found = {(g.get("role"), g.get("split"), tuple(g.get("param_names") or ())) for g in kept}
    if found != expected:
        roles = sorted({str(role) for role, _, _ in expected - found})
        raise Broken(
            f"groups of {', '.join(roles)} do not keep their param_names, role and split in param_groups; the logged "
            "rates by role and checkpoints of shards need them"
        )


def calls_closure_once(build: Build, model: Model) -> None:
    """``step(closure)`` calls it once, with gradients enabled, moves, and returns its loss."""
    net = model()
    optimizer, before = build(parameter_groups(net)), copies(net)
    calls: list[bool] = []
    losses: list[Tensor] = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        losses.append(net(torch.arange(8)[None]).square().mean())
        if calls[-1]:
            losses[-1].backward()
        return losses[-1]

    loss = optimizer.step(closure)  # type: ignore[arg-type]
    if calls != [True]:
        raise Broken(
            f"the closure, which computes loss and gradients, was called {len(calls)} times, "
            f"{sum(calls)} of them with gradients enabled; expected once, with torch.enable_grad(): a second call "
            "sees the last micro-batch alone"
        )
    if loss is not losses[0]:
        raise Broken(f"step(closure) returns {loss!r:.60}; expected what the closure has returned, as torch's do")
    if not unequal(copies(net), before):
        raise Broken("step(closure) moves nothing")


def leaves_gradients(build: Build, model: Model) -> None:
    """A step only reads the gradients: what is logged and clipped is what backward gave."""
    net = model()
    optimizer = build(parameter_groups(net))
    for seed in range(2):
        set_grads(net, seed)
        before = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        optimizer.step()
        after = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
        if changed := unequal(after, before):
            raise Broken(
                f"a step changes the gradient of {changed[0]} and {len(changed) - 1} others; expected them left as "
                "they are (grad.clone() before work in place)"
            )


def unmoved(build: Build, model: Model) -> list[str]:
    """Trainable parameters that two steps leave bit for bit where they were.

    Raises:
        Broken: that is all of them, or a frozen one has moved.
    """
    net = model()
    before = copies(net)
    after = run(build(parameter_groups(net)), net, range(2))
    moved = set(unequal(after, before))
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    if not moved.intersection(trained):
        raise Broken("two steps with random gradients move nothing")
    if frozen := sorted(moved.difference(trained)):
        raise Broken(f"{frozen[0]} and {len(frozen) - 1} others move, which take no gradient")
    return [name for name in trained if name not in moved]


def keeps_without_gradient(build: Build, model: Model) -> None:
    """A parameter whose gradient is None in a step, as that of an expert nobody asked, keeps value and state."""
    net = model()
    groups = parameter_groups(net)
    name, skipped = groups[0]["params"][0]
    optimizer = build(groups)
    run(optimizer, net, range(1))
    value, state = skipped.detach().clone(), _tensors(optimizer, skipped)
    set_grads(net, 1)
    skipped.grad = None
    optimizer.step()
    if not torch.equal(skipped, value):
        raise Broken(f"{name} moves in a step in which its gradient is None")
    if changed := unequal(_tensors(optimizer, skipped), state):
        raise Broken(f"{changed[0]} of {name} changes in a step in which its gradient is None")


def _tensors(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    return {str(k): v.clone() for k, v in optimizer.state[parameter].items() if isinstance(v, Tensor)}


def follows_the_rate(build: Build, model: Model) -> None:
    """Every group's ``lr`` is the scheduler's to set: at 0 nothing moves, decay included."""
    net = model()
    optimizer = build(parameter_groups(net))
    if any("lr" not in group for group in optimizer.param_groups):
        raise Broken("its groups have no lr; expected one in each, which the schedule multiplies")
    scheduler = LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 0.0)
    before = run(optimizer, net, range(1))
    scheduler.step()
    if moved := unequal(run(optimizer, net, range(1, 2)), before):
        raise Broken(f"{moved[0]} and {len(moved) - 1} others move although the schedule has set every lr to 0")


def may_be_clipped(build: Build, model: Model) -> None:
    """Lightning refuses to clip for an optimizer that says it unscales gradients itself (Lightning issue 21435)."""
    if getattr(build(parameter_groups(model())), "_step_supports_amp_scaling", False):
        raise Broken(
            "_step_supports_amp_scaling is set (by fused=True): Lightning refuses trainer.gradient_clip_val in mixed "
            "precision"
        )


def continues_bit_for_bit(build: Build, model: Model, weights_first: bool = True) -> None:
    """Saved after three steps through a file and loaded into a new one, it ends where an unbroken run does.

    Args:
        build: of the optimizer.
        model: in any precision.
        weights_first: whether the model's weights are loaded before the optimizer's state, as Lightning does.
    """
    straight, first, second = model(), model(), model()
    torch.manual_seed(1)  # a run keeps torch's state of chance in its checkpoints, and so does this one
    expected = run(build(parameter_groups(straight)), straight, range(6))
    torch.manual_seed(1)
    optimizer = build(parameter_groups(first))
    run(optimizer, first, range(3))
    chance = torch.get_rng_state()
    resumed = build(parameter_groups(second))
    if weights_first:
        second.load_state_dict(first.state_dict())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    if not weights_first:
        second.load_state_dict(first.state_dict())
    torch.set_rng_state(chance)
    if differing := unequal(run(optimizer, first, range(3, 6)), expected):
        raise Broken(f"two runs of the same steps differ in {differing[0]} and {len(differing) - 1} others, unresumed")
    torch.set_rng_state(chance)
    if differing := unequal(run(resumed, second, range(3, 6)), expected):
        raise Broken(
            f"a resumed run ends elsewhere in {differing[0]} and {len(differing) - 1} others; expected every number "
            "that a step reads in state or param_groups, in the precision it has there (torch casts loaded state to "
            "the parameter's)"
        )


# -------------------- parameters in bfloat16


def kept_of_small_steps(build: Build, model: Model) -> float | None:
    """Share of what many small steps move in float32 that parameters in bfloat16 move, too.

    All parameters are 1, every step has the same gradient, and no step is above a quarter of bfloat16's gap: rounding
    each to the nearest loses all of them, while float32 masters or rounding by chance keep them.

    Returns:
        About 1 or 0; None where nothing moves far enough in float32 to tell.
    """
    # the rate at which the largest of all steps, momentum included, is a quarter of the gap
    largest = _moved_by_one(build, model, torch.float32, scale=None)[1]
    if not largest > 0:
        return None
    scale = GAP / 4 / largest
    exact = _moved_by_one(build, model, torch.float32, scale)[0]
    far = exact.abs() >= 4 * GAP
    if int(far.sum()) < 100:
        return None
    found = _moved_by_one(build, model, torch.bfloat16, scale)[0]
    return float((found * exact.sign())[far].sum() / exact.abs()[far].sum())


def _moved_by_one(build: Build, model: Model, dtype: torch.dtype, scale: float | None) -> tuple[Tensor, float]:
    """How far parameters of 1 are after the small steps, and the largest single step of any of them."""
    net = model().to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    optimizer = build(parameter_groups(net))
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * (1.0 if scale is None else scale)
    before, largest = _flat(net), 0.0
    start = before
    for _ in range(SMALL_STEPS):
        set_grads(net, 0)
        optimizer.step()
        now = _flat(net)
        largest, before = max(largest, float((now - before).abs().max())), now
    return before - start, largest


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in model.parameters() if p.requires_grad])


# -------------------- what it costs


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all tensors in its state, on this rank."""
    values = [local(v) for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return sum(value.numel() * value.element_size() for value in values)
