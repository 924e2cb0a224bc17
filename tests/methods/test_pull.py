"""The pull to the start equals its equations, once a step, with every optimizer; with strength 0 it is Full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_consistency.methods import Full, Pull
from lit_consistency.methods.pull import towards
from lit_consistency.optimizers import SGD, parameter_groups
from tests.methods.small import OPTIMIZERS, data_loss, optimizer_of, small_model, train
from tests.reference.pull import penalty, pulled
from tests.runs import equal, fit, weights

NORMS = ["l1", "l2"]
MATRICES = ("wte", "lm_head", "attn", "mlp")
PULL = "--model.method=lit_consistency.methods.Pull"
OPTION = "--model.method.init_args"


def is_pulled(name: str) -> bool:
    return name.endswith("weight") and any(part in name for part in MATRICES)


@pytest.mark.parametrize("norm", NORMS)
def test_in_the_loss_it_equals_a_penalty_that_autograd_differentiates(norm: Any) -> None:
    method = Pull(norm, strength=0.3)
    model, reference = small_model(method, dtype=torch.float64), small_model(Full(), dtype=torch.float64)
    train(method, model, lambda groups: torch.optim.SGD(reduced(groups), lr=0.1, momentum=0.9))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    chosen = [p for name, p in reference.named_parameters() if is_pulled(name)]
    start = [p.detach().clone() for p in chosen]
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        optimizer.zero_grad()
        extra = penalty(chosen, start, norm, 0.3)
        (data_loss(reference, generator) + extra).backward()
        optimizer.step()
    for name, expected in reference.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), expected, rtol=0, atol=1e-12)
    assert extra > 0
    assert method.log_values()["train/penalty"] == pytest.approx(float(extra.detach()), rel=1e-12)


def reduced(groups: list[dict]) -> list[torch.Tensor]:
    return [parameter for group in groups for _, parameter in group["params"]]


@pytest.mark.parametrize("norm", NORMS)
def test_decoupled_it_equals_a_loop_over_coordinates(norm: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(7, 5, dtype=torch.float64, generator=generator)
    now = start + torch.randn(7, 5, dtype=torch.float64, generator=generator)
    for pull in (0.01, 0.5, 1.0):
        torch.testing.assert_close(towards(now, start, norm, pull), pulled(now, start, norm, pull), rtol=1e-12, atol=0)
    assert torch.equal(towards(start, start, norm, 0.1), start)


def test_decoupled_l1_brings_small_changes_exactly_back() -> None:
    start = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    now = start + 1e-3 * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    back = towards(now, start, "l1", 1e-3)
    small = (now - start).abs() <= 1e-3
    assert torch.equal(back[small], start[small])
    assert (back != start).sum() == (~small).sum()


def test_a_decoupled_l2_of_more_than_the_whole_way_goes_to_the_start() -> None:
    start, now = torch.zeros(3), torch.tensor([1.0, -2.0, 3.0])
    assert torch.equal(towards(now, start, "l2", 5.0), start)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_decoupled_every_step_is_the_optimizers_and_then_the_pull(optimizer: str, norm: Any) -> None:
    """One step, with the learning rate of each group; what is not pulled moves as without."""
    rates = {"adamw_lr": 2e-2} if optimizer.endswith("muon") else {}
    factory = optimizer_of(optimizer, lr=1e-2, **rates)
    method = Pull(norm, strength=0.1, decoupled=True)
    model, free = small_model(method, dtype=torch.float64), small_model(Full(), dtype=torch.float64)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(method, model, factory, steps=1)
    train(Full(), free, factory, steps=1)
    for name, p in free.named_parameters():
        of_adamw = optimizer.endswith("muon") and ("wte" in name or "lm_head" in name)
        expected = pulled(p.detach(), start[name], norm, (2e-2 if of_adamw else 1e-2) * 0.1) if is_pulled(name) else p
        torch.testing.assert_close(model.get_parameter(name), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("low_precision", ["master", "stochastic"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_pull_below_the_gap_of_bfloat16_is_not_lost(norm: Any, low_precision: Any) -> None:
    """A thousandth of a gap, a hundred times: all have gone a tenth of the gap, in the mean."""
    gap, width = 2**-7, 20_000
    model = torch.nn.Linear(width, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    method = Pull(norm, strength=1e-3 if norm == "l2" else 1e-3 * gap, decoupled=True)
    method.begin(model)
    optimizer = SGD(parameter_groups(model), lr=1.0, momentum=0.0, low_precision=low_precision)
    method.attach(model, optimizer)
    torch.nn.init.constant_(model.weight, 1 + gap)
    for _ in range(100):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    moved = optimizer.state[model.weight].get("master", model.weight).detach().double().mean()
    assert float(1 + gap - moved) == pytest.approx(0.1 * gap, rel=0.1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_strength_0_it_is_full_bit_for_bit(optimizer: str) -> None:
    states = []
    for method in (Full(), Pull("l1", strength=0.0), Pull("l2", strength=0.0, decoupled=True)):
        model = small_model(method)
        train(method, model, optimizer_of(optimizer))
        states.append(dict(model.state_dict()))
    assert equal(states[0], states[1])
    assert equal(states[0], states[2])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_pull_reaches_the_float32_copy_of_bfloat16_weights(optimizer: str) -> None:
    """Steps far below what bfloat16 can hold: the copy has all of them, and the weights are it, rounded."""
    method = Pull("l2", strength=1.0, decoupled=True)
    model = small_model(method, dtype=torch.bfloat16)
    start = {name: p.detach().float() for name, p in model.named_parameters()}
    trained = train(method, model, optimizer_of(optimizer, lr=0.2), steps=1)
    free_model = small_model(Full(), dtype=torch.bfloat16)
    free = train(Full(), free_model, optimizer_of(optimizer, lr=0.2), steps=1)
    name = "transformer.h.0.mlp.fc.weight"
    master = trained.state[model.get_parameter(name)]["master"]
    expected = pulled(free.state[free_model.get_parameter(name)]["master"], start[name], "l2", 0.2)
    torch.testing.assert_close(master, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(model.get_parameter(name), master.bfloat16())
    assert not torch.equal(master, master.bfloat16().float())


def test_a_parameter_without_a_gradient_is_pulled_in_the_loss_too() -> None:
    method = Pull("l2", strength=0.5)
    model = small_model(method)
    method.attach(model, torch.optim.SGD(model.parameters(), lr=1.0))
    head = model.get_parameter("lm_head.weight")
    with torch.no_grad():
        head += 2.0
    method.before_step()
    assert head.grad is not None
    torch.testing.assert_close(head.grad, torch.full_like(head, 1.0))


def test_only_the_named_roles_are_pulled() -> None:
    method = Pull("l2", strength=0.5, roles=["norm", "bias"])
    model = small_model(method)
    method.attach(model, torch.optim.SGD(model.parameters(), lr=1.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    method.before_step()
    pulled_ones = {name for name, p in model.named_parameters() if p.grad is not None}
    assert pulled_ones == {name for name, _ in model.named_parameters() if not is_pulled(name)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l3"}, "norm = 'l3': expected one of l1, l2"),
        ({"strength": -0.1}, "strength = -0.1: expected a finite strength >= 0"),
        ({"strength": float("nan")}, "strength = nan"),
        ({"roles": ["attention"]}, "roles = 'attention': expected one of hidden"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pull(**options)


def test_roles_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match=r"roles = \['adapter'\]: no parameter has one of them; found \['bias', "):
        small_model(Pull(roles=["adapter"]))


@pytest.mark.parametrize("decoupled", ["false", "true"])
def test_it_is_there_once_a_step_whatever_the_micro_batches(decoupled: str, tmp_path: Path) -> None:
    found = []
    for size in (8, 1):
        options = [PULL, f"{OPTION}.norm=l1", f"{OPTION}.strength=0.05", f"{OPTION}.decoupled={decoupled}"]
        options += [f"--data.init_args.micro_batch_size={size}", "--trainer.precision=64-true"]
        fit(tmp_path / str(size), *options)
        found.append((weights(tmp_path / str(size) / "run" / "model"), losses(tmp_path / str(size))))
    for name, weight in found[0][0].items():
        assert (found[1][0][name] - weight).abs().max() < 1e-12, name
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-12)


def losses(root: Path) -> list[float]:
    """Logged penalties, and data losses after them."""
    lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/penalty" in line]
    assert len(steps) == 4
    assert steps[0]["train/penalty"] == 0.0
    assert all(line["train/penalty"] > 0 for line in steps[1:])
    return [line["train/penalty"] for line in steps] + [line["train/loss"] for line in steps]


def test_the_logged_loss_is_that_of_the_data(tmp_path: Path) -> None:
    """The first two losses come before the penalty has moved anything."""
    found = []
    for strength in (0.0, 1e-4):
        options = [PULL, f"{OPTION}.strength={strength}", f"{OPTION}.norm=l1", "--trainer.max_steps=2"]
        fit(tmp_path / str(strength), *options, "--trainer.precision=64-true")
        lines = [json.loads(x) for x in (tmp_path / str(strength) / "run" / "metrics.jsonl").read_text().splitlines()]
        found.append([line for line in lines if "train/loss" in line])
    assert [line["train/loss"] for line in found[0]] == [line["train/loss"] for line in found[1]]
    assert found[0][1]["train/penalty"] == 0.0
    assert found[1][1]["train/penalty"] > 0
