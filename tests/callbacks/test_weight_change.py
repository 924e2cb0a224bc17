from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_consistency.callbacks.weight_change import PART, WeightChange, count_bits, pack_bits

ROLES = {"a": "hidden", "b": "hidden", "c": "norm"}
Change = tuple[str, torch.Tensor, torch.Tensor]


def changes() -> Iterator[Change]:
    yield "a", torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])
    yield "b", torch.tensor([0.0, 4.0]), torch.tensor([0.0, 0.0])
    yield "c", torch.tensor([0.0]), torch.tensor([2.0])


def back() -> Iterator[Change]:
    """Everything is where it started."""
    return ((name, torch.zeros_like(change), start) for name, change, start in changes())


def test_distance_is_the_norm_over_all_tensors_of_a_role() -> None:
    numbers = WeightChange(ROLES).measure(changes())
    assert numbers["distance/hidden"] == pytest.approx(5.0)
    assert numbers["distance/norm"] == 0.0
    assert numbers["distance/all"] == pytest.approx(5.0)
    assert numbers["relative_distance/all"] == pytest.approx(5 / math.sqrt(29))


def test_what_moved_once_has_moved_even_if_it_came_back() -> None:
    change = WeightChange(ROLES)
    assert change.measure(changes())["moved/all"] == pytest.approx(2 / 5)
    *others, (name, _, start) = back()
    assert change.measure([*others, (name, torch.tensor([1.0]), start)])["moved/all"] == pytest.approx(3 / 5)


def test_what_moved_survives_a_resume_and_a_save_before_the_next_measurement() -> None:
    first = WeightChange(ROLES)
    first.measure(changes())
    second, third = WeightChange(ROLES), WeightChange(ROLES)
    second.load_state_dict(first.state_dict())
    third.load_state_dict(second.state_dict())
    assert third.measure(back())["moved/all"] == pytest.approx(2 / 5)


class Float64(TorchDispatchMode):
    """Counts the elements of the largest float64 tensor that any operation returns."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
            self.n = max(self.n, out.numel())
        return out


def test_norms_are_summed_in_float64_without_a_copy_of_the_whole() -> None:
    # the square of this change has no float32, and 1 more than 2 ** 24 ones neither
    change, start = torch.full((100,), 1e30), torch.ones(2**24 + 1)
    with Float64() as largest:
        numbers = WeightChange({}).measure([("a", change, start)])
    assert largest.n <= PART
    assert numbers["distance/all"] == pytest.approx(1e31, rel=1e-6)
    assert numbers["relative_distance/all"] == pytest.approx(float(change[0]) * 10 / math.sqrt(2**24 + 1), rel=1e-12)


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5), (2, 3, 4)])
def test_bits_are_counted_as_they_were_packed(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    other = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    bits = pack_bits(mask)
    assert bits.numel() == -(-mask.numel() // 8)
    assert count_bits(bits) == int(mask.sum())
    assert count_bits(bits | pack_bits(other)) == int((mask | other).sum())
