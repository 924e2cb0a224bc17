from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from lit_consistency.optimizers import AdamW, MoFO, parameter_groups
from lit_consistency.optimizers.core.rounding import seed_of
from lit_consistency.optimizers.filtering.passes import Filter
from lit_consistency.optimizers.filtering.threshold import number_kept
from tests.optimizers.models import follow, one_matrix, random_grads, small_gpt
from tests.reference.optimizers import largest_by_sort, mofo_trajectory

OPTIONS: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
FILTERS = get_args(Filter)


def masks(filter: Filter, fraction: float, split: tuple[int, ...] | None = None, seed: int = 0) -> Tensor:
    """Which coordinates move in one step from given moments; the new ones are `m` and `v`."""
    m, g, v = random_grads((6, 10), 3)
    parameter, groups = one_matrix(6, 10, split=split)
    before = parameter.detach().clone()
    optimizer = MoFO(groups, lr=1.0, betas=(0.9, 0.99), fraction=fraction, filter=filter, seed=seed)
    optimizer.state[parameter] = {
        "step": torch.tensor(2.0),
        "exp_avg": (m - 0.1 * g) / 0.9,
        "exp_avg_sq": (v.square() + 1 - 0.01 * g.square()) / 0.99,
    }
    return follow(optimizer, parameter, [g]) != before


@pytest.mark.parametrize("split", [None, (3, 2, 1)])
def test_it_is_the_reference_by_sort(split: tuple[int, ...] | None) -> None:
    grads = random_grads((6, 7), 5)
    parameter, groups = one_matrix(6, 7, split=split)
    start = parameter.detach().clone()
    expected = mofo_trajectory(
        start, grads, list(split or (6,)), lr=0.01, betas=(0.8, 0.95), eps=1e-6, decay=0.1, numerator=1, denominator=5
    )
    found = follow(MoFO(groups, fraction=0.2, **OPTIONS), parameter, grads)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fraction_one_is_adamw(dtype: torch.dtype) -> None:
    grads = random_grads((6, 7), 4)
    theirs, their_groups = one_matrix(6, 7, dtype=dtype)
    expected = follow(AdamW(their_groups, **OPTIONS), theirs, grads)
    for filter in FILTERS:
        ours, groups = one_matrix(6, 7, dtype=dtype, split=(3, 2, 1))
        assert torch.equal(follow(MoFO(groups, fraction=1.0, filter=filter, **OPTIONS), ours, grads), expected), filter


@pytest.mark.parametrize("filter", FILTERS)
def test_exactly_k_coordinates_move_in_each_block(filter: Filter) -> None:
    found = masks(filter, 0.15, split=(3, 2, 1))
    # of 30, 20 and 10 coordinates
    assert [int(block.sum()) for block in found.split((3, 2, 1))] == [5, 3, 2]


@pytest.mark.parametrize("filter", ["momentum", "gradient", "second_moment", "adam_update"])
def test_each_filter_takes_the_largest_of_its_score(filter: Filter) -> None:
    m, g, v = random_grads((6, 10), 3)
    score = {
        "momentum": m.abs(),
        "gradient": g.abs(),
        "second_moment": v.square(),
        "adam_update": m.abs() / ((v.square() + 1) / (1 - 0.99**3)).sqrt(),
    }[filter]
    assert torch.equal(masks(filter, 0.3), largest_by_sort(score, 18))


def test_complement_is_what_momentum_would_leave() -> None:
    assert torch.equal(masks("complement", 0.25), ~masks("momentum", 0.75))


def test_complement_takes_the_last_of_equal_momenta() -> None:
    parameter, groups = one_matrix(2, 3)
    before = parameter.detach().clone()
    found = follow(MoFO(groups, fraction=0.5, filter="complement"), parameter, [torch.ones(2, 3)])
    assert (found != before).tolist() == [[False] * 3, [True] * 3]


def test_random_changes_with_seed_name_and_step_alone() -> None:
    assert torch.equal(masks("random", 0.3, seed=5), masks("random", 0.3, seed=5))
    assert not torch.equal(masks("random", 0.3, seed=5), masks("random", 0.3, seed=6))
    assert len({seed_of(0, "w", 1), seed_of(1, "w", 1), seed_of(0, "v", 1), seed_of(0, "w", 2)}) == 4


def test_random_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    masks("random", 0.3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("fraction", "numel", "kept"),
    [(0.07, 100, 7), (0.15, 100, 15), (0.15, 7, 2), (1e-9, 5, 1), (1.0, 5, 5), (1 / 3, 3, 1)],
)
def test_number_kept_is_the_ceiling_of_the_written_fraction(fraction: float, numel: int, kept: int) -> None:
    assert number_kept(fraction, numel) == kept


@pytest.mark.parametrize("decay_unselected", [False, True])
def test_unselected_coordinates_stay_or_decay(decay_unselected: bool) -> None:
    grad = random_grads((6, 7), 1)
    parameter, groups = one_matrix(6, 7)
    before = parameter.detach().clone()
    options = OPTIONS | {"decay_unselected": decay_unselected}
    found = follow(MoFO(groups, fraction=0.2, **options), parameter, grad)
    left = ~largest_by_sort(grad[0].abs(), 9)
    expected = before * (1 - 0.01 * 0.1) if decay_unselected else before
    assert torch.equal(found[left], expected[left])
    assert not (found[~left] == before[~left]).any()


def test_moments_are_those_of_adamw() -> None:
    grads = random_grads((6, 7), 4)
    ours, groups = one_matrix(6, 7)
    theirs, their_groups = one_matrix(6, 7)
    mofo, adamw = MoFO(groups, fraction=0.1), AdamW(their_groups)
    follow(mofo, ours, grads)
    follow(adamw, theirs, grads)
    for key, value in adamw.state[theirs].items():
        assert torch.equal(mofo.state[ours][key], value), key


def test_norms_and_biases_are_not_filtered_and_embeddings_are() -> None:
    model = small_gpt("pythia-14m")
    filtered = {g["role"]: g["filtered"] for g in MoFO(parameter_groups(model)).param_groups}
    assert filtered == {"hidden": True, "embedding": True, "head": True, "norm": False, "bias": False}


def test_a_stack_is_filtered_matrix_by_matrix() -> None:
    stack = torch.nn.Parameter(torch.zeros(3, 4, 5))
    grad = random_grads((3, 4, 5), 1)[0] * torch.tensor([100.0, 1.0, 0.01])[:, None, None]
    found = follow(MoFO([{"params": [("e", stack)], "role": "hidden", "split": None}], fraction=0.1), stack, [grad])
    assert [int(matrix.count_nonzero()) for matrix in found] == [2, 2, 2]


def test_density_shows_a_budget_spent_on_rows_without_gradient() -> None:
    embedding = torch.nn.Parameter(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)))
    grad = torch.zeros(10, 4)
    grad[2] = 1.0
    optimizer = MoFO([{"params": [("wte", embedding)], "role": "embedding", "split": None}], fraction=0.5)
    assert optimizer.last_density() == {}
    follow(optimizer, embedding, [grad])
    assert optimizer.last_density() == {"embedding": 0.1}


def test_density_is_of_the_last_step_and_by_role() -> None:
    model = small_gpt()
    optimizer = MoFO(parameter_groups(model), fraction=0.25)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        assert optimizer.last_density() == pytest.approx({"hidden": 0.25, "embedding": 0.25, "head": 0.25}, abs=1e-3)


def test_groups_without_roles_are_refused() -> None:
    with pytest.raises(ValueError, match=r"call parameter_groups\(model\)"):
        MoFO(small_gpt().parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "fraction = 0.0: expected 0 < fraction <= 1"),
        ({"fraction": 1.5}, "fraction = 1.5: expected 0 < fraction <= 1"),
        ({"filter": "largest"}, "filter = 'largest': expected one of momentum, gradient, adam_update"),
        ({"selection": "some"}, "selection = 'some': expected one of sampled, exact"),
        ({"compile": "yes"}, "compile = 'yes': expected one of auto, always, never"),
        ({"sample_size": 100}, "sample_size = 100: expected an integer sample_size >= 1024"),
        ({"refresh_every": 0}, "refresh_every = 0: expected an integer refresh_every >= 1"),
        ({"role_fractions": {"heads": 0.1}}, "role_fractions = 'heads': expected one of hidden"),
        ({"role_fractions": {"head": 0.1}}, "role_fractions.head = 0.1: no parameter has this role: expected hidden"),
        ({"role_fractions": {"head": 0}}, "role_fractions.head = 0: expected 0 < role_fractions.head <= 1"),
        ({"final_fraction": 2.0, "anneal_steps": 3}, "final_fraction = 2.0: expected 0 < final_fraction <= 1"),
        ({"anneal_steps": -1}, "anneal_steps = -1: expected an integer anneal_steps >= 0"),
        ({"anneal_steps": 3}, "anneal_steps = 3: expected at least 1 with a final_fraction and 0 without"),
        ({"final_fraction": 0.1}, "anneal_steps = 0: expected at least 1 with a final_fraction and 0 without"),
        ({"unfiltered_roles": ["norms"]}, "unfiltered_roles = 'norms': expected one of hidden"),
    ],
)
def test_errors_name_option_value_and_choices(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoFO(one_matrix(2, 3)[1], **options)
