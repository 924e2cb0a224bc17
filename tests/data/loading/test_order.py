from __future__ import annotations

import pytest

from lit_consistency.data.loading.order import Order


def all_ranks(n_rows: int, world_size: int, micro: int, epoch: int = 0, seed: int | None = 7) -> list[list[int]]:
    """Rows of every global batch of 8, put together from all ranks."""
    orders = [Order(n_rows, 8, micro, world_size, rank, seed) for rank in range(world_size)]
    steps: list[list[int]] = [[] for _ in range(orders[0].steps)]
    for order in orders:
        for number, micro_batch in enumerate(order.epoch(epoch)):
            assert len(micro_batch.rows) == micro
            steps[number // order.per_step] += [row for row in micro_batch.rows if row >= 0]
    return steps


@pytest.mark.parametrize("n_rows", [1, 7, 8, 29, 64])
def test_global_batches_do_not_depend_on_ranks_and_micro_batch(n_rows: int) -> None:
    for world_size, micro in ((1, 2), (2, 4), (2, 1), (4, 2), (8, 1)):
        assert all_ranks(n_rows, world_size, micro) == all_ranks(n_rows, 1, 8), (world_size, micro)


@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epoch_is_every_row_once(epoch: int) -> None:
    rows = [row for step in all_ranks(29, 2, 2, epoch) for row in step]
    assert sorted(rows) == list(range(29))


def test_epochs_and_seeds_differ_and_no_seed_keeps_the_order() -> None:
    orders = [all_ranks(29, 1, 8, 0, 7), all_ranks(29, 1, 8, 1, 7), all_ranks(29, 1, 8, 0, 8)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert sum(all_ranks(29, 1, 8, 5, None), []) == list(range(29))


def test_all_ranks_have_the_same_number_of_micro_batches() -> None:
    orders = [Order(9, 8, 2, 2, rank, 0) for rank in range(2)]
    assert [len(list(order.epoch(0))) for order in orders] == [len(order) for order in orders] == [4, 4]


@pytest.mark.parametrize("start", [0, 1, 5, 8])
def test_an_epoch_goes_on_from_any_micro_batch(start: int) -> None:
    order = Order(29, 8, 2, 2, 1, 0)
    assert list(order.epoch(2, start)) == list(order.epoch(2))[start:]


def test_every_micro_batch_knows_its_global_batch() -> None:
    for rank in range(2):
        order = Order(11, 8, 2, 2, rank, 0)
        sizes = [len(micro_batch.global_batch) for micro_batch in order.epoch(0)]
        assert sizes == [8, 8, 3, 3]
