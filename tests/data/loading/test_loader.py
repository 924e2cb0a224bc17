from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lit_consistency.data.loading.loader import TokenLoader
from lit_consistency.data.loading.order import Order
from lit_consistency.data.tokens.token_rows import IGNORE, PackedSequence, TokenRows
from tests.data.helpers import row_ids


class NumberedRows(TokenRows):
    """Row i is the token i + 1, i % 5 + 1 times; so a batch tells its rows, and rows have different lengths."""

    full = False
    block_size = 8

    def __init__(self, n_rows: int) -> None:
        self.supervised = np.arange(n_rows) % 5 + 1

    @property
    def lengths(self) -> np.ndarray:
        return self.supervised

    def __getitem__(self, i: int) -> PackedSequence:
        tokens = np.full(i % 5 + 1, i + 1)
        return PackedSequence(tokens, tokens, np.arange(len(tokens)), np.zeros(len(tokens), dtype=np.int64))

    def document(self, i: int, number: int) -> tuple[int, int]:
        return i, 0


def make(
    n_rows: int = 29,
    micro: int = 2,
    world_size: int = 1,
    rank: int = 0,
    seed: int = 3,
    size: int = 8,
    workers: int = 0,
    by_length: bool = False,
) -> TokenLoader:
    order = Order(n_rows, size, micro, world_size, rank, seed, by_length)
    return TokenLoader(NumberedRows(n_rows), order, num_workers=workers)


def ids(loader: TokenLoader, n: int | None = None) -> list[list[int]]:
    return [row_ids(batch) for batch in itertools.islice(loader, n)]


@pytest.mark.parametrize("workers", [0, 2])
def test_consumed_rows_of_two_halves_are_one_pass(workers: int) -> None:
    whole = make()
    expected = ids(whole) + ids(whole)
    for stop in (0, 4, 16, 20):
        first = make(workers=workers)
        seen = ids(first, stop) if stop <= 16 else ids(first) + ids(first, stop - 16)
        second = make(workers=workers)
        second.load_state_dict(first.state_dict())
        seen += ids(second)
        if stop < 16:
            seen += ids(second)
        assert seen == expected
    for epoch in (expected[:16], expected[16:]):
        assert sorted(itertools.chain(*epoch)) == list(range(1, 30))


def test_position_counts_what_was_handed_out_and_not_what_workers_prepared() -> None:
    loader = make(workers=2)
    ids(loader, 5)
    assert loader.state_dict() == {
        "epoch": 0,
        "global_batch": 1,
        "micro_batch": 1,
        "n_rows": 29,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "world_size": 1,
        "seed": 3,
    }


@pytest.mark.parametrize(("micro", "world_size"), [(8, 1), (1, 1), (2, 2), (1, 4)])
def test_another_layout_goes_on_at_the_same_global_batch(micro: int, world_size: int) -> None:
    first = make()
    ids(first, 8)  # two global batches
    state = first.state_dict()
    rest = [i for batch in ids(first) for i in batch]
    loaders = [make(micro=micro, world_size=world_size, rank=rank) for rank in range(world_size)]
    for loader in loaders:
        loader.load_state_dict(state)
    own = 8 // (micro * world_size)
    batches = [ids(loader) for loader in loaders]
    seen = [
        i
        for step in range(2)
        for rank in batches
        for micro_batch in rank[step * own : (step + 1) * own]
        for i in micro_batch
    ]
    assert seen == rest


@pytest.mark.parametrize(("micro", "world_size"), [(2, 1), (2, 2), (1, 4)])
def test_rows_of_one_length_share_a_micro_batch(micro: int, world_size: int) -> None:
    """A step holds the rows that it holds unsorted, from the longest to the shortest over all ranks at a time."""
    plain = ids(make(micro=8))
    ranks = [ids(make(micro=micro, world_size=world_size, rank=r, by_length=True)) for r in range(world_size)]
    times = [sum(of_ranks, []) for of_ranks in zip(*ranks, strict=True)]
    per_step = 8 // (micro * world_size)
    for i, rows in enumerate(plain):
        step = sum(times[i * per_step : (i + 1) * per_step], [])
        assert sorted(step) == sorted(rows)
        lengths = [(row - 1) % 5 + 1 for row in step if row]
        assert lengths == sorted(lengths, reverse=True)


def test_sorted_rows_are_resumed_where_they_stopped() -> None:
    whole = make(by_length=True)
    expected, first = ids(whole) + ids(whole), make(by_length=True)
    seen = ids(first, 8)
    second = make(by_length=True)
    second.load_state_dict(first.state_dict())
    assert seen + ids(second) + ids(second) == expected
    assert expected[:16] != ids(make())


@pytest.mark.parametrize("micro", [2, 4])
def test_a_global_batch_begun_is_begun_anew(micro: int) -> None:
    first = make()
    ids(first, 6)  # one global batch and a half
    other = make(micro=micro)
    counts: list[tuple[int, int, bool]] = []
    other.on_resume = lambda *count: counts.append(count)
    other.load_state_dict(first.state_dict())
    assert counts == [(6, 8 // micro, True)]
    assert sum(ids(other, 8 // micro), []) == sum(ids(make())[4:8], [])


@pytest.mark.parametrize(
    ("key", "change"), [("n_rows", {"n_rows": 30}), ("seed", {"seed": 4}), ("global_batch_size", {"size": 4})]
)
def test_a_position_that_means_nothing_here_is_refused(key: str, change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"resume: data.{key} = "):
        make(**change).load_state_dict(make().state_dict())


def test_workers_do_not_change_a_batch() -> None:
    for here, there in zip(make(), make(workers=2), strict=True):
        assert here.keys() == there.keys()
        assert all(torch.equal(here[name], there[name]) for name in here)


def test_iterating_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    ids(make())
    ids(make(workers=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_the_length_is_that_of_an_epoch_wherever_the_position_is() -> None:
    loader = make()
    assert len(loader) == 16
    ids(loader, 5)
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert len(resumed) == 16


def test_a_later_epoch_begins_at_its_start_and_an_earlier_one_is_ignored() -> None:
    loader, other = make(), make()
    ids(loader, 5)  # as Lightning does with limit_train_batches: the epoch is left before its end
    loader.set_epoch(1)
    ids(other)
    assert ids(loader, 3) == ids(other, 3)
    loader.set_epoch(0)
    assert loader.state_dict()["epoch"] == 1
    assert loader.state_dict()["micro_batch"] == 3


def test_an_epoch_left_early_goes_on_where_it_was() -> None:
    loader = make(workers=2)
    assert ids(loader, 5) + ids(loader) == ids(make())


@pytest.mark.parametrize(("micro", "world_size"), [(8, 1), (2, 1), (1, 1), (4, 2), (1, 4)])
def test_the_loss_of_a_step_does_not_depend_on_the_split(micro: int, world_size: int) -> None:
    """Summed over micro-batches and ranks, nll / supervised is the mean over the tokens of the step."""
    nll = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = torch.zeros(4, dtype=torch.float64)
    for rank in range(world_size):
        loader = make(micro=micro, world_size=world_size, rank=rank)
        for number, batch in enumerate(loader):
            learned = batch["targets"] != IGNORE
            losses[number // loader.order.per_step] += nll[batch["targets"][learned]].sum() / batch["supervised"]
    whole = make(micro=8)
    expected = torch.stack([nll[batch["targets"][batch["targets"] != IGNORE]].mean() for batch in whole])
    assert torch.allclose(losses, expected, rtol=1e-12, atol=0)


def test_loaders_for_evaluation_give_the_same_pass_again_and_again() -> None:
    loader = TokenLoader(NumberedRows(5), Order(5, 2, 2, 1, 0, None), training=False)
    assert ids(loader) == ids(loader) == [[1, 2], [3, 4], [5]]
    ids(loader, 1)
    assert ids(loader) == [[1, 2], [3, 4], [5]]
    assert "supervised" not in next(iter(loader))
