from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_consistency.optimizers.core import checks


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (lambda v: checks.check_at_least("lr", v, 0), -1, "lr = -1: expected a finite lr >= 0"),
        (lambda v: checks.check_at_least("lr", v, 0), float("inf"), "lr = inf: expected a finite lr >= 0"),
        (lambda v: checks.check_at_least("lr", v, 0), float("nan"), "lr = nan: expected a finite lr >= 0"),
        (
            lambda v: checks.check_at_least("lr", v, 0),
            "x",
            "lr = 'x': expected a finite lr >= 0 as a number, not a str",
        ),
        (
            lambda v: checks.check_at_least("lr", v, 0),
            torch.tensor(0.5),
            r"lr = tensor\(0.5000\): expected a finite lr >= 0 as a number, not a Tensor",
        ),
        (
            lambda v: checks.check_at_least("lr", v, 0),
            None,
            "lr = None: expected a finite lr >= 0 as a number, not a NoneType",
        ),
        (lambda v: checks.check_count("ns_steps", v, 1), 0, "ns_steps = 0: expected an integer ns_steps >= 1"),
        (lambda v: checks.check_count("ns_steps", v, 1), 2.5, r"ns_steps = 2\.5: expected an integer ns_steps >= 1"),
        (lambda v: checks.check_count("ns_steps", v, 1), float("nan"), "ns_steps = nan: expected an integer ns_.*"),
        (lambda v: checks.check_count("ns_steps", v, 1), float("inf"), "ns_steps = inf: expected an integer ns_.*"),
        (lambda v: checks.check_below_one("momentum", v), "x", "momentum = 'x': expected 0 <= momentum < 1"),
        (lambda v: checks.check_share("fraction", v), "x", "fraction = 'x': expected 0 < fraction <= 1"),
        (lambda v: checks.check_share("fraction", v), True, "fraction = True: expected 0 < fraction <= 1"),
        (lambda v: checks.check_below_one("momentum", v), 1.0, "momentum = 1.0: expected 0 <= momentum < 1"),
        (lambda v: checks.check_share("fraction", v), 0, "fraction = 0: expected 0 < fraction <= 1"),
        (lambda v: checks.check_choice("shape", v, ("a", "b")), "c", "shape = 'c': expected one of a, b"),
        (lambda v: checks.check_choices("roles", v, ("a", "b")), ["a", "c"], "roles = 'c': expected one of a, b"),
        (lambda v: checks.check_choices("roles", v, ("a", "b")), "a", "roles = 'a': expected a list of a, b"),
    ],
)
def test_what_is_out_of_range_is_named(check: Any, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message + "$"):
        check(value)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    checks.check_at_least("lr", 0.0, 0)
    checks.check_below_one("momentum", 0.0)
    checks.check_share("fraction", 1.0)
    checks.check_choices("roles", [], ("a",))
    checks.check_adam(0.0, (0.0, 0.0), 1e-30, 0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-1.0, (0.9, 0.9), 0.0, 0.0), "adamw_lr = -1.0"),
        ((0.1, (0.9, 1.0), 0.0, 0.0), r"adamw_betas = \[0.9, 1.0\]: expected two numbers with 0 <= beta < 1"),
        ((0.1, 0.9, 0.0, 0.0), "adamw_betas = 0.9: expected two numbers"),
        ((0.1, ("a", 0.9), 0.0, 0.0), r"adamw_betas = \['a', 0.9\]: expected two numbers"),
        ((0.1, (0.9,), 0.0, 0.0), r"adamw_betas = \[0.9\]: expected two numbers"),
        ((0.1, (0.9, 0.9), -1.0, 0.0), "adamw_eps = -1.0"),
        ((0.1, (0.9, 0.9), 0.0, 0.0), "adamw_eps = 0.0: expected a finite adamw_eps > 0"),
        ((0.1, (0.9, 0.9), 1e-8, -1.0), "adamw_weight_decay = -1.0"),
    ],
)
def test_the_prefix_is_part_of_the_name(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checks.check_adam(*values, prefix="adamw_")
