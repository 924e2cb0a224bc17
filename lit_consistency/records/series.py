"""A series of models of one run: at which optimizer steps it is written. Pure numbers: a study plans with them.

Three forms, as ``checkpoint.series`` takes them: ``{steps: log, count: 8}`` (and ``first: 10``, where it begins, 1 when
not given), a list of steps ``[10, 100, 1000]`` (``{steps: [10, 100, 1000]}`` is the same), and ``{tokens: [1000000]}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Spec = Mapping[str, Any] | Sequence[int]
FORMS = "{steps: log, count: N, first: M}, a list of steps, or {tokens: [..]}"


def series_steps(spec: Spec, total_steps: int, tokens_per_step: int | None = None) -> list[int]:
    """Optimizer steps after which a model is written, ascending, none twice.

    Args:
        spec: one of the three forms. ``log`` spaces ``count`` steps evenly in the logarithm, from ``first`` to the last
            step of the run, which it includes; steps that round to the same number are one, so a short run has fewer.
            A list means what it says: the last step is in the series only if it is named.
        total_steps: optimizer steps of the run.
        tokens_per_step: tokens of a full batch, global_batch_size * block_size; needed for ``tokens``, each of which
            becomes the first step that has seen so many.

    Raises:
        ValueError: the specification is none of the three, or a step lies beyond the end of the run.
    """
    check_series(spec)
    steps = spec.get("steps") if isinstance(spec, Mapping) else spec
    if steps == "log":
        assert isinstance(spec, Mapping)
        return _logarithmic(spec.get("first", 1), total_steps, spec["count"])
    key, wanted = "checkpoint.series", steps
    if wanted is None:
        assert isinstance(spec, Mapping)
        key, wanted = "checkpoint.series.tokens", spec["tokens"]
        if tokens_per_step is None:
            raise ValueError(f"{key} = {list(wanted)}: expected steps; the tokens of a step are not known here")
    per_step = 1 if steps is not None else tokens_per_step
    assert per_step is not None
    # rounded up: the first step at which so many have been seen
    reached = {value: int(-(-value // per_step)) for value in wanted}
    for value, step in reached.items():
        if step > total_steps:
            end = f"{total_steps} steps" if steps is not None else f"{total_steps * per_step} tokens"
            raise ValueError(f"{key}: {value} lies beyond the end of the run; expected at most {end}")
    return sorted(set(reached.values()))


def check_series(spec: Spec) -> None:
    """See that a specification is one of the three forms, whatever the length of the run.

    Raises:
        ValueError: naming the key, its value and what is allowed.
    """
    key = "checkpoint.series"
    if not isinstance(spec, Mapping):
        _check_numbers(key, spec, whole=True)
        return
    allowed = (
        {"tokens"} if "tokens" in spec else {"steps", "count", "first"} if spec.get("steps") == "log" else {"steps"}
    )
    if unknown := sorted(set(spec) - allowed):
        raise ValueError(f"{key}.{unknown[0]} = {spec[unknown[0]]!r}: expected {FORMS}")
    if "tokens" in spec:
        _check_numbers(f"{key}.tokens", spec["tokens"], whole=False)
    elif spec.get("steps") == "log":
        for name, value in (("count", spec.get("count")), ("first", spec.get("first", 1))):
            if value is None or not _is_number(value, whole=True) or value < 1:
                raise ValueError(f"{key}.{name} = {value!r}: expected a whole number of at least 1")
    else:
        _check_numbers(f"{key}.steps", spec.get("steps"), whole=True)


def _logarithmic(first: int, last: int, count: int) -> list[int]:
    if first > last:
        raise ValueError(f"checkpoint.series.first = {first}: lies beyond the end of the run, {last} steps")
    if count == 1:
        return [last]
    return sorted({round(first * (last / first) ** (i / (count - 1))) for i in range(count)})


def _check_numbers(key: str, values: Any, whole: bool) -> None:
    """A list of numbers, each at least 1."""
    what = "whole numbers" if whole else "numbers"
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"{key} = {values!r}: expected {FORMS}")
    for value in values:
        if not _is_number(value, whole) or value < 1:
            raise ValueError(f"{key}: {value!r}: expected {what} of at least 1")


def _is_number(value: Any, whole: bool) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
