"""Every option of every optimizer is refused by name where its value is impossible; the files name the options."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.optimizers.models import small_gpt
from tests.optimizers.test_contract import SECTIONS, build, defaults_of

ANY_VALUE = {"seed"}  # options without a range


def impossible(default: Any) -> list[Any]:
    """Values that no option with such a default may have."""
    if isinstance(default, bool) or default is None:
        return []
    if isinstance(default, str):
        return ["nonsense"]
    if isinstance(default, list) and all(isinstance(value, str) for value in default):
        return [["nonsense"], "nonsense"]
    if isinstance(default, list):
        return [[*default[1:], 1.0], [-0.1, *default[1:]], [math.nan, *default[1:]], default[1:], ["x", 0.9], 0.9]
    return [-1, 5000.5, "x"] if isinstance(default, int) else [-1.0, math.nan, math.inf, "x", None]


@pytest.mark.parametrize("name", SECTIONS)
def test_what_is_out_of_range_is_refused_by_name(name: str) -> None:
    model, n_refused = small_gpt(), 0
    for option, default in defaults_of(name).items():
        for value in impossible(default) if option not in ANY_VALUE else []:
            # the option, then what it is, then what is allowed
            with pytest.raises(ValueError, match=rf"^{option} = .*: expected .*({option}|one of|a list of|numbers)"):
                build(name, model, **{option: value})
            n_refused += 1
    assert n_refused > 10
