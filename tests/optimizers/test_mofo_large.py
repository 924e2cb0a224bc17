"""MoFO where blocks are larger than a sample: compiled and not, in one process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_consistency.optimizers import MoFO
from lit_consistency.optimizers.filtering.blocks import blocks_of
from lit_consistency.optimizers.filtering.passes import FILTERS
from tests.optimizers.models import follow, one_matrix, random_grads

SIZE = 1024
OPTIONS: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1, "sample_size": SIZE}


def moved_share(filter: str, compile: str, scale: Callable[[Tensor], Tensor] = lambda g: g, **options: Any) -> float:
    parameter, groups = one_matrix(300, 256, dtype=torch.float32)
    before = parameter.detach().clone()
    grads = [scale(grad) for grad in random_grads((300, 256), 1)]
    found = follow(MoFO(groups, filter=filter, compile=compile, **(OPTIONS | options)), parameter, grads)
    return float((found != before).double().mean())


@pytest.mark.parametrize("filter", FILTERS)
def test_a_sample_moves_about_the_fraction(filter: str) -> None:
    # adam_update is the gradient's sign in the first step: nearly equal scores
    grads = random_grads((300, 256), 2)
    parameter, groups = one_matrix(300, 256)
    optimizer = MoFO(groups, filter=filter, compile="never", fraction=0.15, **OPTIONS)
    follow(optimizer, parameter, grads)
    # four standard deviations of a sample of 4096
    assert optimizer.last_selected()["hidden"] == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / 4096) ** 0.5)


@pytest.mark.parametrize("columns", [256, 240, 64, 1])
def test_a_stride_has_no_factor_in_common_with_a_row(columns: int) -> None:
    (block,) = blocks_of((76800 // columns, columns), None, SIZE, 0, "w", 1)
    seen = {(block.first + i * block.stride) % columns for i in range(block.n_sampled)}
    assert block.stride > 1
    assert len(seen) == columns


def test_large_columns_do_not_mislead_the_sample() -> None:
    columns = torch.ones(256)
    columns[::8] = 30.0
    share = moved_share("momentum", "never", lambda grad: grad * columns, fraction=0.15)
    assert share == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / 4096) ** 0.5)


def test_positions_change_with_seed_name_step_and_stay_inside() -> None:
    def first(seed: int, name: str, step: int) -> list[int]:
        blocks = blocks_of((300, 256), (100, 150, 50), SIZE, seed, name, step)
        assert all(b.begin <= b.first and b.first + (b.n_sampled - 1) * b.stride < b.end for b in blocks)
        return [block.first - block.begin for block in blocks]

    starts = [first(0, "w", 1), first(1, "w", 1), first(0, "v", 1), first(0, "w", 2)]
    assert first(0, "w", 1) == starts[0]
    assert len({tuple(start) for start in starts}) == 4


@pytest.mark.parametrize("compile", ["never", "always"])
@pytest.mark.parametrize("selection", ["sampled", "exact"])
@pytest.mark.slow
def test_a_block_of_mostly_zeros_is_not_selected_whole(selection: str, compile: str) -> None:
    rows = torch.zeros(300, 1)
    rows[:9] = 1.0
    parameter, groups = one_matrix(300, 256)
    before = parameter.detach().clone()
    optimizer = MoFO(groups, compile=compile, selection=selection, fraction=0.15, **OPTIONS)
    found = follow(optimizer, parameter, [random_grads((300, 256), 1)[0] * rows])
    # weight decay shows which were selected
    assert float((found != before).double().mean()) == pytest.approx(0.15, abs=0.02)
    assert optimizer.last_selected()["hidden"] == pytest.approx(0.15, abs=1e-4 if selection == "exact" else 0.02)
    assert optimizer.last_density()["hidden"] == pytest.approx(0.03, abs=1e-9)


@pytest.mark.parametrize("selection", ["sampled", "exact"])
def test_at_least_one_coordinate_moves(selection: str) -> None:
    moved = moved_share("momentum", "never", fraction=1e-9, selection=selection) * 300 * 256
    assert 1 <= moved <= (1 if selection == "exact" else 300)


@pytest.mark.parametrize("selection", ["sampled", "exact"])
@pytest.mark.parametrize("filter", FILTERS)
def test_gradients_of_nan_select_no_more_than_others_do(filter: str, selection: str) -> None:
    parameter, groups = one_matrix(300, 256)
    grad = random_grads((300, 256), 1)[0]
    grad[:3] = float("nan")
    optimizer = MoFO(groups, filter=filter, selection=selection, compile="never", fraction=0.15, **OPTIONS)
    follow(optimizer, parameter, [grad])
    assert optimizer.last_selected()["hidden"] <= 0.17


@pytest.mark.parametrize("selection", ["sampled", pytest.param("exact", marks=pytest.mark.slow)])
def test_compiled_steps_are_those_without_a_compiler(selection: str) -> None:
    grads = random_grads((300, 256), 3)
    found = []
    for compile in ("always", "never"):
        parameter, groups = one_matrix(300, 256, split=(100, 150, 50))
        optimizer = MoFO(groups, selection=selection, compile=compile, **OPTIONS)
        found.append((follow(optimizer, parameter, grads), optimizer.last_selected(), optimizer.last_density()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("selection", ["sampled", "exact"])
def test_every_filter_compiles_to_the_same_steps(filter: str, selection: str) -> None:
    grads = random_grads((300, 256), 3)
    found = []
    for compile in ("always", "never"):
        parameter, groups = one_matrix(300, 256)
        options = OPTIONS | {"filter": filter, "selection": selection, "decay_unselected": True}
        found.append(follow(MoFO(groups, compile=compile, **options), parameter, grads))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_a_new_rate_or_size_compiles_nothing_new() -> None:
    counters = torch._dynamo.utils.counters["stats"]
    optimizers = []
    for rows in (300, 301, 333):
        parameter, groups = one_matrix(rows, 256, split=(100, 150, rows - 250))
        optimizers.append((MoFO(groups, compile="always", **OPTIONS), parameter, random_grads((rows, 256), 1)))
    follow(*optimizers[0])
    before = counters["unique_graphs"]
    assert before > 0
    for number, (optimizer, parameter, grads) in enumerate(optimizers * 2):
        optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
        follow(optimizer, parameter, grads)
    assert counters["unique_graphs"] == before


def test_small_runs_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr("lit_consistency.optimizers.mofo.compiled_one_pass", refuse)
    assert moved_share("momentum", "auto") > 0


def test_a_compiler_that_fails_is_told_once_and_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr("lit_consistency.optimizers.mofo.compiled_one_pass", refuse)
    monkeypatch.setattr("lit_consistency.optimizers.mofo.WORTH_COMPILING", 1)
    parameter, groups = one_matrix(300, 256)
    with caplog.at_level(logging.WARNING):
        follow(MoFO(groups, **OPTIONS), parameter, random_grads((300, 256), 2))
    assert caplog.text.count("MoFO is not compiled") == 1
    with pytest.raises(RuntimeError, match="compile = 'always': the step does not compile"):
        follow(MoFO(groups, compile="always", **OPTIONS), parameter, random_grads((300, 256), 1))
