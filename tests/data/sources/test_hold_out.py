from __future__ import annotations

import pytest

from lit_consistency.data.sources.hold_out import HoldOut

TEXTS = [f"document {i}" for i in range(2000)]


def test_train_and_validation_divide_everything() -> None:
    train, validation = HoldOut("train", 0.2), HoldOut("validation", 0.2)
    assert all(train.keeps(text) != validation.keeps(text) for text in TEXTS)
    assert all(HoldOut("all").keeps(text) for text in TEXTS)


def test_share_holds_in_expectation() -> None:
    held_out = sum(HoldOut("validation", 0.2).keeps(text) for text in TEXTS)
    assert abs(held_out - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5


def test_a_larger_share_holds_out_the_same_documents_and_more() -> None:
    small, large = HoldOut("validation", 0.1), HoldOut("validation", 0.3)
    assert all(large.keeps(text) for text in TEXTS if small.keeps(text))


def test_membership_is_the_same_on_every_machine() -> None:
    held_out = [text for text in TEXTS[:40] if HoldOut("validation", 0.1).keeps(text)]
    assert held_out == GOLDEN


GOLDEN = ["document 21", "document 22"]


@pytest.mark.parametrize(
    ("part", "share", "message"),
    [
        ("all", 1.0, "validation_share = 1.0: expected 0 <= validation_share < 1"),
        ("all", -0.1, "validation_share = -0.1: expected"),
        ("train", 0.0, "part = train with validation_share = 0: expected 0 < validation_share < 1"),
        (
            "all",
            0.1,
            "validation_share = 0.1 with part = all: expected part train or validation",
        ),
        ("test", 0.1, "part = 'test': expected all, train or validation"),
    ],
)
def test_bad_option_is_named(part: str, share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HoldOut(part, share)  # type: ignore[arg-type]
