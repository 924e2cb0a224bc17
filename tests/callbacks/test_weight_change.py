from __future__ import annotations

import math

import pytest
import torch

from lit_consistency.callbacks.weight_change import WeightChange, pack_bits, unpack_bits

ROLES = {"a": "hidden", "b": "hidden", "c": "norm"}


def changes() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {
        "a": (torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])),
        "b": (torch.tensor([0.0, 4.0]), torch.tensor([0.0, 0.0])),
        "c": (torch.tensor([0.0]), torch.tensor([2.0])),
    }


def test_distance_is_the_norm_over_all_tensors_of_a_role() -> None:
    numbers = WeightChange(ROLES).measure(changes())
    assert numbers["distance/hidden"] == pytest.approx(5.0)
    assert numbers["distance/norm"] == 0.0
    assert numbers["distance/all"] == pytest.approx(5.0)
    assert numbers["relative_distance/all"] == pytest.approx(5 / math.sqrt(29))


def test_what_moved_once_has_moved_even_if_it_came_back() -> None:
    change = WeightChange(ROLES)
    assert change.measure(changes())["moved/all"] == pytest.approx(2 / 5)
    back = {name: (torch.zeros_like(c), start) for name, (c, start) in changes().items()}
    back["c"] = (torch.tensor([1.0]), torch.tensor([2.0]))
    assert change.measure(back)["moved/all"] == pytest.approx(3 / 5)


def test_what_moved_survives_a_resume() -> None:
    first = WeightChange(ROLES)
    first.measure(changes())
    second = WeightChange(ROLES)
    second.load_state_dict(first.state_dict(), {name: c.shape for name, (c, _) in changes().items()})
    still = {name: (torch.zeros_like(c), start) for name, (c, start) in changes().items()}
    assert second.measure(still)["moved/all"] == pytest.approx(2 / 5)


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5), (2, 3, 4)])
def test_bits_are_unpacked_as_they_were(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    bits = pack_bits(mask)
    assert bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack_bits(bits, mask.shape), mask)
