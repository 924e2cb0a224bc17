from __future__ import annotations

import pytest

from lit_consistency.callbacks import time_budget
from lit_consistency.callbacks.time_budget import TimeBudget


class Hands:
    """A clock that stands still until it is moved."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(time_budget, "time", hands)
    return hands


def begun(share: float, cost: float, clock: Hands) -> TimeBudget:
    """After a first measurement."""
    budget = TimeBudget(share)
    budget.begin()
    clock.now += cost
    budget.spend(cost)
    return budget


def test_measurements_stay_within_the_share(clock: Hands) -> None:
    """A second of training between the times at which half a second of measuring is due."""
    budget = begun(0.1, 0.5, clock)
    for _ in range(200):
        clock.now += 1.0
        if budget.allows_one_more():
            clock.now += 0.5
            budget.spend(0.5)
            assert budget.seconds <= 0.1 * budget.elapsed
        else:
            budget.skip()
    assert budget.made + budget.skipped == 201
    assert 0.09 < budget.seconds / budget.elapsed <= 0.1


def test_the_latest_cost_counts_not_the_first(clock: Hands) -> None:
    budget = begun(0.5, 1.0, clock)
    clock.now += 4.0  # 5 seconds, of which 1 was spent: 3 more of 8 are too many, 1 more of 6 is not
    assert budget.allows_one_more()
    budget.latest = 3.5
    assert not budget.allows_one_more()


def test_one_skips_nothing_and_zero_everything(clock: Hands) -> None:
    assert begun(1.0, 1e6, clock).allows_one_more()
    never = begun(0.0, 1.0, clock)
    clock.now += 1e9
    assert not never.allows_one_more()


def test_counts_and_time_go_on_after_a_break(clock: Hands) -> None:
    before = begun(0.1, 1.0, clock)
    clock.now += 9.0
    before.skip()
    state = before.state_dict()
    clock.now += 1e6  # the break does not count
    after = TimeBudget(0.1)
    after.load_state_dict(state)
    after.begin()
    clock.now += 5.0
    assert after.record() == {"time_budget": 0.1, "seconds": 1.0, "elapsed": 15.0, "made": 1, "skipped": 1}
    assert not after.allows_one_more()
    clock.now += 5.0
    assert after.allows_one_more()


def test_a_state_without_counts_begins_at_zero(clock: Hands) -> None:
    budget = TimeBudget(0.1)
    budget.load_state_dict({})
    assert budget.numbers() == {"evaluation/seconds": 0.0, "evaluation/skipped": 0.0}


def test_what_was_skipped_is_told(clock: Hands) -> None:
    budget = begun(0.05, 1.0, clock)
    assert budget.summary_line() is None
    for _ in range(3):
        budget.skip()
    budget.make_up()
    assert str(budget.summary_line()).startswith("skipped 2 of 3 measurements to stay within 5% of the time")


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"time_budget = {share}: expected a share"):
        TimeBudget(share)
