"""The rule of ``checkpoint.best``: what it asks for is measured, and it knows the better of two models."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from lit_consistency.callbacks.best_model import BestRule
from lit_consistency.stats.intervals import Estimate
from tests.runs import ROOT


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"best": "learn/new"}, r"checkpoint.best = \{'best': 'learn/new'\}: expected"),
        ({"most": "learn/new", "while": 1}, r"checkpoint.best.while = 1: expected bounds"),
        ({"most": "learn/newer"}, r"learn/newer: no watched task gives it; expected one of learn/new, learn/new.exact"),
        ({"most": "learn/new", "while": "nothing<=1"}, r"checkpoint.best.while: nothing<=1: no such set"),
    ],
)
def test_a_rule_that_chooses_nothing_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BestRule(rule).check({"learn/new": ("nats_per_token", "exact")})


def test_what_the_configuration_of_a_finetuning_offers_keeps_the_best_and_not_the_worst() -> None:
    """Rows are judged by their loss, so its comment must ask for the least; a warning would fail the test."""
    [line] = [line for line in (ROOT / "configs/finetune.yaml").read_text().splitlines() if "# best:" in line]
    offered = yaml.safe_load(line.strip().removeprefix("# "))["best"]
    rule = BestRule(offered)
    rule.check({"learn/validation": ("nats_per_token",), "retain/pairs": ("accuracy",)})
    kept = {"retain/pairs": Estimate(0.0, 0.01, -0.02, 0.02)}
    assert rule.value({"learn/validation": 1.0}, kept) > rule.value({"learn/validation": 2.0}, kept)


@pytest.mark.filterwarnings("ignore:checkpoint.best. least learn/new .exact. is the model that is worst")
def test_a_best_rule_knows_more_from_less() -> None:
    within = Estimate(0.0, 0.01, -0.02, 0.02)
    for key, sign in (("most", 1), ("least", -1)):
        rule = BestRule({key: "learn/new", "while": "old<=0.1"})
        rule.check({"learn/new": ("exact",), "retain/old": ("exact",)})
        assert rule.value({"learn/new": 0.5}, {"retain/old": within}) == sign * 0.5
        assert rule.value({"learn/new": 0.5}, {"retain/old": Estimate(0.25, 0.01, 0.2, 0.3)}) == float("-inf")
        assert rule.value({"learn/new": float("nan")}, {"retain/old": within}) == float("-inf")
    rule = BestRule({"most": "learn/new"})
    with pytest.warns(
        UserWarning, match=r"most learn/new \(nats_per_token\) is the model that is worst by it; .* least"
    ):
        rule.check({"learn/new": ("nats_per_token",)})
