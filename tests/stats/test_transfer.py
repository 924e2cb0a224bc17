from __future__ import annotations

import math

import numpy as np
import pytest

from lit_consistency.stats.transfer import backward_transfer, forgetting, overall_performance, retained_share

# rows: the base, after task 1, 2, 3; the last column is an ability that is never trained
SCORES = np.array([[0.1, 0.2, 0.3, 0.9], [0.8, 0.1, 0.3, 0.7], [0.5, 0.9, 0.4, 0.6], [0.4, 0.7, 0.6, 0.65]])


def test_overall_performance_is_the_mean_of_the_trained_tasks_at_the_end() -> None:
    assert overall_performance(SCORES) == pytest.approx((0.4 + 0.7 + 0.6) / 3)
    assert overall_performance(SCORES[:2]) == pytest.approx(0.8)


def test_backward_transfer_compares_with_the_task_s_own_stage() -> None:
    assert backward_transfer(SCORES) == pytest.approx(((0.4 - 0.8) + (0.7 - 0.9)) / 2)


def test_forgetting_is_the_fall_from_the_best_earlier_stage() -> None:
    expected = [max(row[i] for row in SCORES.tolist()[:-1]) - SCORES.tolist()[-1][i] for i in range(4)]
    assert forgetting(SCORES).tolist() == pytest.approx(expected)
    assert expected[3] == pytest.approx(0.25)  # the base had it


def test_the_retained_share_is_of_the_gain_over_the_base() -> None:
    share = retained_share(SCORES).tolist()
    assert share[:3] == pytest.approx([0.3 / 0.7, 0.5 / 0.7, 1.0])
    assert math.isnan(share[3])  # never above the base


def test_nothing_forgotten_is_zero() -> None:
    scores = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert backward_transfer(scores) == 0
    assert forgetting(scores).tolist() == [0.0, -1.0]


@pytest.mark.parametrize("shape", [(1, 2), (4, 2), (2, 2)])
def test_a_matrix_that_is_no_sequence_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected \(1 \+ t, at least t\) with t >= 2"):
        backward_transfer(np.zeros(shape))


def test_one_stage_has_forgotten_nothing_yet_and_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two stages"):
        forgetting(np.zeros((1, 3)))
