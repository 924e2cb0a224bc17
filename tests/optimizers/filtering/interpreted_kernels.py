"""MoFO's kernels, run by Triton's interpreter on the CPU, against sorts and against the CPU's own step.

    TRITON_INTERPRET=1 python -m pytest -n 0 tests/optimizers/filtering/interpreted_kernels.py

``test_cuda.py`` does that, since Triton has to be imported with the variable set.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_consistency.optimizers import MoFO
from lit_consistency.optimizers.filtering import cuda
from lit_consistency.optimizers.filtering.blocks import blocks_of

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1"
# a segment of the kernels holds 2^14 coordinates: blocks of several, of one and of less
SHAPES = {"tall": ((300, 131), None), "fused": ((64, 512), (40, 23, 1)), "small": ((7, 5), None), "one": ((1, 1), None)}


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "DEVICES", ("cpu",))


@pytest.fixture(autouse=True)
def _no_warning(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Where the kernels fail the passes would hide it."""
    yield
    assert not caplog.get_records("call")


def parameters(dtype: torch.dtype = torch.float32) -> tuple[dict[str, nn.Parameter], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(0)
    named = {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, (shape, _) in SHAPES.items()
    }
    groups = [
        {"params": [(name, named[name]) for name in named if SHAPES[name][1] == split], "role": role, "split": split}
        for role, split in (("hidden", None), ("head", (40, 23, 1)))
    ]
    return named, groups


def set_gradients(named: dict[str, nn.Parameter], step: int, *, ties: bool = False) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in named.values():
        grad = torch.randn(parameter.shape, generator=generator)
        # a few values only, and rows of zeros, as of an embedding
        grad = (grad * 2).round() * (torch.arange(len(grad)) % 3 > 0)[:, None] if ties else grad
        parameter.grad = grad.to(parameter.dtype)


def sorted_choice(score: Tensor, k: int, smallest: bool) -> Tensor:
    """Mask of the k largest, of equal ones the first; or of the k smallest, of equal ones the last."""
    order = score.flip(0).argsort(stable=True) if smallest else score.argsort(descending=True, stable=True)
    mask = torch.zeros(score.shape, dtype=torch.bool)
    mask[len(score) - 1 - order[:k] if smallest else order[:k]] = True
    return mask


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter divides what lies beyond the end as well
@pytest.mark.parametrize(
    ("filter", "fraction", "ties"),
    [
        ("momentum", 0.001, True),
        ("momentum", 0.15, False),
        ("momentum", 0.15, True),
        ("momentum", 0.999, True),
        ("complement", 0.15, True),
    ],
)
def test_exact_moves_exactly_the_largest_of_every_block(filter: Any, fraction: float, ties: bool) -> None:
    named, groups = parameters()
    optimizer = MoFO(groups, lr=0.1, betas=(0.5, 0.9), fraction=fraction, filter=filter, selection="exact")
    n_chosen: dict[str, int] = {"hidden": 0, "head": 0}
    for step in range(2):
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        set_gradients(named, step, ties=ties)
        optimizer.step()
    for name, parameter in named.items():
        state = optimizer.state[parameter]
        _, split = SHAPES[name]
        sizes = [rows * parameter.shape[1] for rows in split or [len(parameter)]]
        mean, square = state["exp_avg"].view(-1).split(sizes), state["exp_avg_sq"].view(-1).split(sizes)
        values = [tensor.view(-1).split(sizes) for tensor in (before[name], parameter.data)]
        for m, v, old, new in zip(mean, square, *values, strict=True):
            k = math.ceil(round(fraction * len(m), 6))
            n_chosen["head" if split else "hidden"] += k
            chosen = sorted_choice(m.abs(), k, filter == "complement")
            update = 0.1 * m / (1 - 0.5**2) / ((v / (1 - 0.9**2)).sqrt() + 1e-8)
            torch.testing.assert_close(new, torch.where(chosen, old - update, old), rtol=1e-5, atol=1e-6)
            assert torch.equal(new[~chosen], old[~chosen])
    total = {role: sum(p.numel() for _, p in group["params"]) for role, group in zip(n_chosen, groups, strict=True)}
    assert optimizer.last_selected() == pytest.approx({role: n / total[role] for role, n in n_chosen.items()})


@pytest.mark.parametrize(
    ("filter", "selection", "dtype"),
    [
        ("momentum", "sampled", torch.float32),
        ("momentum", "exact", torch.bfloat16),
        ("adam_update", "exact", torch.float32),
        ("adam_update", "sampled", torch.bfloat16),
        ("second_moment", "exact", torch.float32),
        ("gradient", "sampled", torch.bfloat16),
        ("random", "exact", torch.float32),
        ("random", "sampled", torch.float32),
        ("complement", "sampled", torch.float32),
    ],
)
def test_the_kernels_arrive_where_the_passes_do(
    filter: Any, selection: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for devices in (("cpu",), ()):
        monkeypatch.setattr(cuda, "DEVICES", devices)
        named, groups = parameters(dtype)
        options: dict[str, Any] = {"filter": filter, "selection": selection, "sample_size": 1024}
        # the first step's updates are of one size, and the choice among them one of rounding, unless eps is large
        optimizer = MoFO(groups, lr=0.1, eps=0.1, weight_decay=0.1, decay_unselected=filter == "random", **options)
        for step in range(3):
            set_gradients(named, step)
            optimizer.step()
            shares = optimizer.last_selected() | optimizer.last_density()
            if step == 1:
                optimizer.load_state_dict(optimizer.state_dict())
        found.append((optimizer, named, shares))
    (kernels, found_params, found_shares), (_, params, shares) = found
    assert len(kernels._on_device._plans) == 2
    assert found_shares == pytest.approx(shares, rel=1e-3)
    start, _ = parameters(dtype)
    for name in params:
        changed = (params[name] - start[name]).float().norm()
        apart = (found_params[name] - params[name]).float().norm()
        # a coordinate beside a threshold may be taken by one and not by the other
        assert apart <= 0.01 * changed + 1e-6, name


def test_a_sampled_threshold_is_that_of_the_sample() -> None:
    """Also of one that has ties: the coordinates behind a sampled one go with it."""
    named, groups = parameters()
    optimizer = MoFO(groups[:1], lr=0.1, betas=(0.0, 0.9), fraction=0.3, sample_size=1024, seed=7)
    before = named["tall"].detach().clone().view(-1)
    set_gradients(named, 5, ties=True)
    optimizer.step()
    (block,) = blocks_of(named["tall"].shape, None, 1024, 7, "tall", 1)
    assert block.stride > 1
    score = named["tall"].grad.abs().view(-1)
    sample = score[block.first :: block.stride][: block.n_sampled]
    last = sorted_choice(sample, math.ceil(0.3 * len(sample)), smallest=False).nonzero()
    kth = sample[last].min()
    cut = block.first + block.stride * int(last[sample[last] == kth].max()) + 1
    chosen = (score > kth) | ((score == kth) & (torch.arange(len(score)) < cut))
    assert torch.equal(named["tall"].data.view(-1) != before, chosen & (score > 0))


def test_parameters_of_different_steps_share_a_launch() -> None:
    """One that had no gradient at first is a step behind; its numbers are its own."""
    named, groups = parameters()
    optimizer = MoFO(groups, lr=0.1, selection="exact")
    set_gradients(named, 0)
    named["small"].grad = None
    optimizer.step()
    set_gradients(named, 1)
    before = named["small"].detach().clone()
    optimizer.step()
    assert [int(optimizer.state[named[name]]["step"]) for name in SHAPES] == [2, 2, 1, 2]
    # the first step of Adam is the sign
    moved = named["small"] != before
    assert int(moved.sum()) == math.ceil(0.15 * 35)
    torch.testing.assert_close((before - named["small"])[moved], 0.1 * named["small"].grad.sign()[moved])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("selection", ["sampled", "exact"])
def test_a_nan_takes_a_place_and_is_not_chosen(selection: Any) -> None:
    named, groups = parameters()
    optimizer = MoFO(groups[:1], lr=0.1, fraction=0.2, selection=selection)
    set_gradients(named, 0)
    grad = named["small"].grad
    assert grad is not None
    grad[0, 0], grad[3, 2] = math.nan, math.inf
    before = named["small"].detach().clone()
    optimizer.step()
    # 7 of 35: one is NaN, and inf / inf is NaN as well
    moved = (named["small"] != before).nonzero().tolist()
    assert [0, 0] not in moved
    assert [3, 2] in moved
    assert len(moved) == 6
