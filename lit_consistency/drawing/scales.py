"""Axes' scales: where a value stands, and which values are written beside the axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map from values to pixels.

    Args:
        low: value at ``start``.
        high: value at ``end``.
        ticks: values that are written beside the axis.
        log: whether equal ratios are equal distances.
        zero: on a logarithmic axis, the positive value at whose place 0 stands, apart from the rest; NaN if there is
            no 0. A sweep of weight decay has one.
        start: pixel.
        end: pixel.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False
    zero: float = math.nan
    start: float = 0.0
    end: float = 1.0

    def between(self, start: float, end: float) -> Scale:
        """The same scale between two other pixels."""
        return replace(self, start=start, end=end)

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            value = math.log(value if value > 0 else self.zero)
            low, high = math.log(low), math.log(high)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def holds(self, value: float) -> bool:
        """Whether the value lies on the axis."""
        if self.log and value == 0:
            return not math.isnan(self.zero)
        return math.isfinite(value) and self.low <= value <= self.high

    def labels(self) -> list[str]:
        """Text of every tick; those of a linear axis have the same number of decimals."""
        if self.log:
            return [short_number(tick) for tick in self.ticks]
        return _linear_labels(self.ticks)


def linear(values: Iterable[float], n: int = 5, include: Sequence[float] = (), pad: float = 0.05) -> Scale:
    """A scale over all finite values.

    Args:
        values: of the data; what is not finite does not count.
        n: about how many ticks.
        include: further values that must lie on it.
        pad: share of the range that is left free on either side.
    """
    known = [value for value in [*values, *include] if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    # one value, or several that differ by rounding alone, still need an axis
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        low, high = (low - 0.1 * abs(low), high + 0.1 * abs(high)) if low else (-1.0, 1.0)
    pad *= high - low
    low, high = low - pad, high + pad
    return Scale(low, high, tuple(linear_ticks(low, high, n)))


def linear_ticks(low: float, high: float, n: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten between two values, about ``n`` of them."""
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def logarithmic(values: Iterable[float]) -> Scale:
    """A scale on which equal ratios are equal distances, its ticks the values themselves: swept rates are few.

    A 0 stands one step below the smallest rate. With a negative value, or without a positive one, it is linear.
    """
    known = sorted({value for value in values if math.isfinite(value)})
    positive = [value for value in known if value > 0]
    if not positive or known[0] < 0:
        return linear(known)
    # 0 is set apart by a little more than the finest step of the sweep
    step = min((b / a for a, b in zip(positive, positive[1:], strict=False)), default=2.0)
    zero = positive[0] / max(step, 1.5) ** 1.3 if known[0] == 0 else math.nan
    low = positive[0] if math.isnan(zero) else zero
    high = positive[-1]
    room = max((high / low) ** 0.06, 1.05)
    return Scale(low / room, high * room, tuple(known), log=True, zero=zero)


def decades(values: Iterable[float]) -> Scale:
    """A logarithmic scale over measured values, its ticks powers of ten, or 1, 2 and 5 times these over a short range.

    Args:
        values: positive ones count; at least one must be.
    """
    known = [value for value in values if math.isfinite(value) and value > 0]
    low, high = min(known), max(known)
    room = max((high / low) ** 0.05, 1.05)
    low, high = low / room, high * room
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if len(powers) > 4 else (1, 2, 5)
    ticks = [m * 10.0**k for k in powers for m in steps if low <= m * 10.0**k <= high]
    # within a factor of two no such number may lie
    return Scale(low, high, tuple(ticks or linear_ticks(low, high, 4)), log=True)


def sparse(scale: Scale, widths: Sequence[float], gap: float) -> Scale:
    """The scale without the ticks whose labels would touch one another; on a linear one equal distances stay equal.

    Args:
        scale: with its pixels.
        widths: of the labels of its ticks.
        gap: between two labels, at least.
    """
    if not scale.log:
        apart = min((scale(b) - scale(a) for a, b in zip(scale.ticks, scale.ticks[1:], strict=False)), default=0.0)
        every = math.ceil((max(widths, default=0.0) + gap) / apart) if apart > 0 else 1
        # 0 is the one value that a reader looks for
        zero = min(range(len(scale.ticks)), key=lambda i: abs(scale.ticks[i]), default=0)
        return replace(scale, ticks=scale.ticks[zero % every :: every])
    kept: list[int] = []
    for i, tick in enumerate(scale.ticks):
        if not kept or scale(tick) - widths[i] / 2 >= scale(scale.ticks[kept[-1]]) + widths[kept[-1]] / 2 + gap:
            kept.append(i)
    return replace(scale, ticks=tuple(scale.ticks[i] for i in kept))


# -------------------- numbers as text


def _linear_labels(ticks: Sequence[float]) -> list[str]:
    largest = max(map(abs, ticks), default=0.0)
    step = min((b - a for a, b in zip(ticks, ticks[1:], strict=False)), default=largest)
    if largest >= 1e5 or (largest > 0 and step < 1e-5):
        return [short_number(tick) for tick in ticks]
    decimals = next((d for d in range(7) if abs(round(step, d) - step) < 1e-3 * step), 6) if step else 0
    return [
        f"{tick + 0.0:.{decimals}f}".replace("-", "−") for tick in (0.0 if abs(t) < 1e-9 * step else t for t in ticks)
    ]


def short_number(value: float) -> str:
    """Three digits: ``0.9``, ``3e-4``, ``1.5e6``; small and large ones with an exponent, as rates are written."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0 or 1e-2 <= abs(value) < 1e5:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    else:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return text.replace("-", "−") if "e" not in text else ("−" if value < 0 else "") + text.lstrip("-")
