"""Range checks of hyperparameters, with messages such as ``lr = -1: expected a finite lr >= 0``.

Values that are not numbers raise the same ``ValueError``; only ``check_count`` asks for an integer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any


def check_at_least(name: str, value: float, low: float) -> None:
    """See that ``value`` is finite and at least ``low``.

    Raises:
        ValueError: it is not.
    """
    if not (_is_number(value) and math.isfinite(value) and value >= low):
        kind = "" if _is_number(value) else f" as a number, not a {type(value).__name__}"
        raise ValueError(f"{name} = {value!r}: expected a finite {name} >= {low:g}{kind}")


def check_count(name: str, value: int, low: int) -> None:
    """See that ``value`` is an integer and at least ``low``.

    Raises:
        ValueError: it is not.
    """
    if not (isinstance(value, int) and _is_number(value) and value >= low):
        raise ValueError(f"{name} = {value!r}: expected an integer {name} >= {low}")


def check_below_one(name: str, value: float) -> None:
    """See that 0 <= ``value`` < 1, as a decay rate of a running mean must be.

    Raises:
        ValueError: it is not.
    """
    if not (_is_number(value) and 0 <= value < 1):
        raise ValueError(f"{name} = {value!r}: expected 0 <= {name} < 1")


def check_share(name: str, value: float) -> None:
    """See that 0 < ``value`` <= 1.

    Raises:
        ValueError: it is not.
    """
    if not (_is_number(value) and 0 < value <= 1):
        raise ValueError(f"{name} = {value!r}: expected 0 < {name} <= 1")


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """See that ``value`` is one of ``allowed``.

    Raises:
        ValueError: it is not.
    """
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: expected one of {', '.join(allowed)}")


def check_choices(name: str, values: Iterable[str], allowed: Iterable[str]) -> None:
    """See that every one of ``values`` is one of ``allowed``.

    Raises:
        ValueError: one is not, or ``values`` is a bare string.
    """
    allowed = list(allowed)
    if isinstance(values, str):
        raise ValueError(f"{name} = {values!r}: expected a list of {', '.join(allowed)}")
    for value in values:
        check_choice(name, value, allowed)


def check_adam(lr: float, betas: tuple[float, float], eps: float, weight_decay: float, prefix: str = "") -> None:
    """See that Adam's hyperparameters are possible.

    Args:
        lr: step size, at least 0.
        betas: decay rates of the two running means, each in [0, 1).
        eps: added to the denominator, above 0.
        weight_decay: at least 0.
        prefix: put before each name in messages, e.g. ``adamw_``.

    Raises:
        ValueError: naming the first that is not.
    """
    check_at_least(f"{prefix}lr", lr, 0)
    check_betas(betas, prefix)
    if eps == 0:  # 0 / 0 where a gradient is zero, as in rows of the embedding that no token has asked for
        raise ValueError(f"{prefix}eps = {eps!r}: expected a finite {prefix}eps > 0")
    check_at_least(f"{prefix}eps", eps, 0)
    check_at_least(f"{prefix}weight_decay", weight_decay, 0)


def check_betas(betas: tuple[float, float], prefix: str = "") -> None:
    """ValueError unless these are two decay rates in [0, 1)."""
    pair = list(betas) if isinstance(betas, Sequence) and not isinstance(betas, str) else betas
    if not isinstance(pair, list) or len(pair) != 2 or not all(_is_number(beta) and 0 <= beta < 1 for beta in pair):
        raise ValueError(f"{prefix}betas = {pair!r}: expected two numbers with 0 <= beta < 1")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
