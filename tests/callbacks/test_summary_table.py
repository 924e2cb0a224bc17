from __future__ import annotations

import pytest

from lit_consistency.callbacks.summary_table import Measurement, results_table
from lit_consistency.records.results import higher_is_better
from lit_consistency.tasks.definition import METRICS

LOSSES = {"bits_per_byte", "nats_per_token", "word_perplexity"}


@pytest.mark.parametrize("metric", sorted({m for metrics in METRICS.values() for m in metrics}))
def test_every_metric_of_a_task_has_a_direction(metric: str) -> None:
    assert higher_is_better(metric.replace("@K", "@2")) == (metric not in LOSSES)


@pytest.mark.parametrize("metric", ["loss", "kl"])
def test_the_losses_of_other_sets_are_better_when_lower(metric: str) -> None:
    assert not higher_is_better(metric)


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
    found = Measurement("retain", "task", metric, base, 0.4).share
    assert found == (share if share is None else pytest.approx(share))


@pytest.mark.parametrize(("base", "share"), [(0.26, None), (0.29, None), (0.5, 0.8)])
def test_guesses_of_the_base_are_nothing_to_be_retained(base: float, share: float | None) -> None:
    """Among four candidates."""
    assert Measurement("retain", "task", "accuracy", base, 0.4, chance=0.25).share == share


def test_the_table_shows_shares_of_what_is_retained_only(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Measurement("retain", "kept", "accuracy", 0.8, 0.6),
        Measurement("retain", "small", "accuracy", 0.02, 0.01),
        Measurement("learn", "new", "accuracy", 0.5, 0.9),
    ]
    results_table(rows, {"kl_to_base": 0.5, "reverse_kl_to_base": 0.25})
    printed = capsys.readouterr().out
    lines = {line.split()[1]: line for line in printed.splitlines() if line.startswith("│")}
    assert "75.0%" in lines["kept"]
    assert "+0.2000" in lines["kept"]
    assert "%" not in lines["small"] + lines["new"]
    assert "KL to the base on the new task 0.5 nats (reverse 0.25)" in printed.replace("\n", " ")


def test_chance_has_a_column_where_something_can_be_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    choice = Measurement("retain", "choice", "accuracy", 0.8, 0.6, chance=0.25)
    loss = Measurement("retain", "text", "loss", 1.0, 1.5)
    results_table([choice, loss], {})
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith(("│", "┃"))}
    assert "chance" in lines["task"]
    assert "0.2500" in lines["choice"]
    assert "0.2500" not in lines["text"]
    results_table([loss], {})
    assert "chance" not in capsys.readouterr().out
