"""What the benchmark of evaluation compares, and when it says that a bar is missed."""

from __future__ import annotations

from tests.benchmarks.evaluation import Case, Outcome, compare, made_up_cases, missed


def outcome(ours: float, equal: bool) -> Outcome:
    return Outcome("PIQA", 10, 8, 2.0, ours, 3.0, "1e-3 nats", equal)


def test_a_missed_bar_and_unequal_scores_are_named() -> None:
    assert missed([outcome(6.0, True)]) == []
    assert missed([outcome(5.0, True)]) == ["PIQA: 2.50 times, expected 3.0"]
    assert missed([outcome(9.0, False)]) == ["PIQA: scores differ (1e-3 nats)"]


def test_scores_are_equal_within_the_tolerance_and_in_every_choice() -> None:
    case = Case("PIQA", "loglikelihood", [("", "a"), ("", "b")], 2, 3.0)
    theirs = [(-2.0, False), (-2.00005, False)]
    assert compare(case, [(-2.00002, False), (-2.00004, False)], theirs)[1]
    assert not compare(case, [(-2.0002, False), (-2.0003, False)], theirs)[1]
    assert not compare(case, [(-2.00005, False), (-2.0, False)], theirs)[1]
    assert not compare(case, [(-2.0, True), (-2.00005, False)], theirs)[1]
    writing = Case("GSM8K", "generate_until", [("a", {})], 1, 2.0)
    assert compare(writing, ["b"], ["b"])[1]
    assert not compare(writing, ["b"], ["c"])[1]


def test_questions_can_be_made_up() -> None:
    piqa, blimp, gsm8k = made_up_cases(10)
    assert (len(piqa.requests), len(blimp.requests), len(gsm8k.requests)) == (20, 80, 2)
    assert len({request[0].rpartition("Question")[0] for request in gsm8k.requests}) == 1
