"""Bounds are read from text, and judged by intervals."""

from __future__ import annotations

import pytest

from lit_consistency.stats.bounds import Bound, bound_names, parse_bounds

NAN = float("nan")


def test_bounds_are_read_from_one_text_or_several() -> None:
    expected = [Bound("blimp", "<=", 0.02), Bound("own_samples", "<=", 0.05), Bound("learn/new", ">=", 0.5)]
    assert parse_bounds("blimp<=0.02, own_samples <= 5e-2,learn/new>=.5") == expected
    assert parse_bounds(["blimp<=0.02", "own_samples<=0.05, learn/new>=0.5"]) == expected
    assert str(expected[1]) == "own_samples<=0.05"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("blimp", "'blimp'"),
        ("blimp<0.02", "'blimp<0.02'"),
        ("blimp<=much", "'much' of blimp"),
        ("blimp<=nan", "'nan' of blimp"),
        ("<=0.02", "'<=0.02'"),
        ("blimp<=0.02,", "''"),
        ("", "''"),
        ("a<=0.1, a<=0.2", "a has two bounds <="),
    ],
)
def test_what_is_no_bound_is_named(text: str, named: str) -> None:
    with pytest.raises(ValueError, match="forgetting.budget") as error:
        parse_bounds(text, "forgetting.budget")
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("low", "high", "most", "least"),
    [
        (0.0, 0.04, "kept", "breached"),
        (0.04, 0.06, "unknown", "unknown"),
        (0.0501, 0.08, "breached", "kept"),
        (0.01, 0.05, "kept", "unknown"),
        (NAN, NAN, "unknown", "unknown"),
        (0.06, NAN, "unknown", "unknown"),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, most: str, least: str) -> None:
    assert Bound("a", "<=", 0.05).judge(low, high) == most
    assert Bound("a", ">=", 0.05).judge(low, high) == least


def test_a_name_goes_before_a_pattern_and_an_unknown_name_is_refused() -> None:
    bounds = parse_bounds("*<=0.05, text*<=0.2, blimp<=0.01, blimp>=-0.5")
    assert bound_names(bounds[:1] + bounds[2:], ["blimp", "facts"]) == {
        "blimp": parse_bounds("blimp<=0.01, blimp>=-0.5"),
        "facts": parse_bounds("*<=0.05"),
    }
    assert len(bound_names(bounds, ["blimp", "text_law"])["text_law"]) == 2
    with pytest.raises(ValueError, match=r"text\*<=0.2: no such set; expected one of blimp"):
        bound_names(bounds, ["blimp"])
    with pytest.raises(ValueError, match=r"no such set; none is measured"):
        bound_names(bounds, [])
