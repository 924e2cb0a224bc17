from __future__ import annotations

import math

import pytest
import torch

from lit_consistency.optimizers.core import rounding
from lit_consistency.optimizers.core.rounding import random_low_bits, round_stochastically, seed_of


def rounded(source: torch.Tensor, seed: int = 0) -> torch.Tensor:
    target = torch.empty(source.shape, dtype=torch.bfloat16)
    round_stochastically(target, source, torch.Generator().manual_seed(seed))
    return target


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.9])
def test_the_upper_neighbour_is_taken_with_the_share_of_the_way_to_it(sign: float, share: float) -> None:
    n, gap = 200_000, 2.0**-7  # bfloat16's gap above 1
    up = (rounded(torch.full((n,), sign * (1 + share * gap))).float() * sign - 1) / gap
    assert set(up.tolist()) == {0.0, 1.0}
    assert abs(float(up.mean()) - share) < 5 * math.sqrt(share * (1 - share) / n)


def test_what_bfloat16_holds_stays_and_so_does_what_is_not_finite() -> None:
    exact = torch.randn(1000).bfloat16()
    assert torch.equal(rounded(exact.float()), exact)
    # a NaN whose bits are all ones would become -0 by the addition alone
    ones = torch.tensor([-1, 2**31 - 1], dtype=torch.int32).view(torch.float32)
    special = torch.cat([torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0]), ones])
    torch.testing.assert_close(rounded(special).float(), special, equal_nan=True, rtol=0, atol=0)


def test_the_bits_are_uniform_and_independent() -> None:
    bits = random_low_bits(400_003, torch.Generator().manual_seed(0)).double()
    assert bits.min() >= 0
    assert bits.max() < 2**16
    # each of the four quarters of a 64-bit draw
    for quarter in range(4):
        part = bits[quarter::4]
        assert abs(float(part.mean()) - (2**16 - 1) / 2) < 5 * 2**16 / math.sqrt(12 * len(part))
    following = torch.stack([bits[:-1], bits[1:]]).corrcoef()[0, 1]
    assert abs(float(following)) < 5 / math.sqrt(len(bits))


def test_parts_at_a_time_are_right_in_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "ROUNDED_AT_ONCE", 64)
    source = torch.linspace(1, 2, 1000)
    found = rounded(source).float()
    assert bool(((found - source).abs() < 2**-7).all())
    assert abs(float((found - source).mean())) < 5 * 2**-7 * 0.41 / math.sqrt(1000)


def test_any_memory_layout_and_no_elements_at_all() -> None:
    source = torch.randn(6, 8)
    target = torch.empty(8, 6, dtype=torch.bfloat16).T
    round_stochastically(target, source, torch.Generator().manual_seed(0))
    assert torch.equal(target, rounded(source))
    assert rounded(torch.empty(0, 3)).shape == (0, 3)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected float32 to bfloat16, got torch.float32 to torch.float16"):
        round_stochastically(torch.empty(2, dtype=torch.float16), torch.empty(2), torch.Generator())


def test_seeds_differ_by_seed_name_and_step_and_are_the_same_anywhere() -> None:
    assert len({seed_of(0, "w", 1), seed_of(1, "w", 1), seed_of(0, "v", 1), seed_of(0, "w", 2)}) == 4
    assert seed_of(0, "w", 1) == seed_of(0, "w", 1)
    assert 0 <= seed_of(2**62, "transformer.wte.weight", 10**9) < 2**63
