from __future__ import annotations

import math

import pytest

from lit_consistency.callbacks.summary_table import Measurement, results_table, tasks_table
from lit_consistency.records.results import METRICS, higher_is_better

LOSSES = {"bits_per_byte", "nats_per_token", "nats_per_word", "word_perplexity", "perplexity", "loss", "kl"}


def test_every_metric_has_a_direction() -> None:
    assert {metric for metric in METRICS if not higher_is_better(metric)} == LOSSES
    assert higher_is_better("pass@2")


def test_what_it_means_to_be_worse_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="metric 'bleu': expected one of accuracy, "):
        higher_is_better("bleu")


@pytest.mark.parametrize(
    ("metric", "base", "share"),
    [
        ("accuracy", 0.5, 0.8),
        ("pass@1", 0.06, 0.4 / 0.06),
        ("rouge_l", 0.05, None),  # no clear score to be a share of
        ("rouge_l", 0.0, None),
        ("accuracy", float("nan"), None),
        ("loss", 3.0, None),
    ],
)
def test_the_retained_share_needs_a_base_that_scores(metric: str, base: float, share: float | None) -> None:
    measured = Measurement("retain", "task", metric, base, 0.4).share
    assert measured == (share if share is None else pytest.approx(share))


@pytest.mark.parametrize(("base", "share"), [(0.26, None), (0.29, None), (0.5, 0.8)])
def test_guesses_of_the_base_are_nothing_to_be_retained(base: float, share: float | None) -> None:
    """Among four candidates."""
    assert Measurement("retain", "task", "accuracy", base, 0.4, chance=0.25).share == share


def printed(capsys: pytest.CaptureFixture[str], *rows: Measurement, **numbers: float) -> dict[str, list[str]]:
    """Words of every line by its first word; a line without a name goes by its metric."""
    results_table(rows, numbers)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80, "a log is no wider"
    return {line.split()[0]: line.split()[1:] for line in lines if line.split()}


def test_shares_are_of_what_is_retained_only(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Measurement("retain", "kept", "accuracy", 0.8, 0.6),
        Measurement("retain", "small", "accuracy", 0.02, 0.01),
        Measurement("learn", "new", "accuracy", 0.5, 0.9),
    ]
    words = printed(capsys, *rows, kl_to_base=0.5, reverse_kl_to_base=0.25)
    assert words["kept"] == ["accuracy", "0.8000", "0.6000", "+0.2000", "75.0%"]
    assert words["small"] == ["accuracy", "0.0200", "0.0100", "+0.0100"]
    assert words["new"] == ["accuracy", "0.5000", "0.9000", "+0.4000"]
    results_table(rows, {"kl_to_base": 0.5, "reverse_kl_to_base": 0.25})
    assert "KL to the base 0.5 nats (reverse 0.25)" in capsys.readouterr().out.replace("\n", " ")


def test_chance_stands_below_what_can_be_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    choice = Measurement("retain", "choice", "accuracy", 0.8, 0.6, chance=0.25)
    assert printed(capsys, choice)["by"] == ["chance", "0.2500"]
    assert "by" not in printed(capsys, Measurement("retain", "text", "nats_per_token", 1.0, 1.5))


def test_errors_and_a_second_metric_are_shown_where_they_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    loss = Measurement("retain", "people", "nats_per_token", 0.5, 0.75, base_stderr=0.01, now_stderr=0.02)
    exact = Measurement(
        "retain", "people", "exact", 1.0, 1.0, base_stderr=0.0, now_stderr=0.0, worse_stderr=0.0, beside=loss
    )
    bare = Measurement("learn", "text", "nats_per_token", 2.0, 1.5, now_stderr=math.nan)
    words = printed(capsys, exact, bare)
    assert words["people"] == ["exact", "1.0000±.000", "1.0000±.000", "+0.0000±.000", "100.0%"]
    assert words["nats_per_token"] == ["0.5000±.010", "0.7500±.020", "+0.2500"]
    assert words["text"] == ["nats_per_token", "2.0000", "1.5000", "+0.5000"]


def test_the_tasks_of_a_model_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    tasks_table([Measurement("retain", "choice", "accuracy", 0.8, 0.8, chance=0.25, now_stderr=0.0125)])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "choice" in line]
    assert line.split() == ["choice", "accuracy", "0.8000±.013", "0.2500"]


def test_the_table_says_what_a_set_can_resolve_and_where_the_base_guesses(capsys: pytest.CaptureFixture[str]) -> None:
    """Before a change is seen, half the interval of a half: 1.96 / (2 sqrt(400)); then by the paired error."""
    pairs = Measurement("retain", "pairs", "accuracy", 0.8, 0.8, 0.5, 0.02, 0.02, 0.0, items=400)
    text = Measurement("retain", "prose", "bits_per_byte", 1.0, 1.1, 0.0, 0.05, 0.05, 0.01, items=26)
    facts = Measurement("retain", "facts", "accuracy", 0.28, 0.25, 0.25, 0.033, 0.033, 0.01, items=187)
    never = Measurement("retain", "json", "exact_match", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, items=30)
    assert [m.at_chance for m in (pairs, text, facts, never)] == [False, False, True, True]
    results_table([pairs, text, facts, never], {})
    words = " ".join(capsys.readouterr().out.split())
    assert "are those below: pairs 4.9 points (400 items), prose 0.02 bits_per_byte (26 items) no better" in words
    assert "nothing can be forgotten there: facts, json distance" in words
