from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_consistency.data.loading.loader import TokenLoader
from lit_consistency.data.loading.mixed_rows import MixedRows
from lit_consistency.data.loading.order import Order
from lit_consistency.data.loading.replay import Replay
from lit_consistency.data.pretrain_data import PretrainData
from lit_consistency.data.sft_data import SFTData
from lit_consistency.data.sources.mixture import RowMixture, TextMixture
from tests.data.helpers import ListRows, ListSource

MATHS = ListRows([(f"the sum {i} ", "the answer " * (i % 5 + 1)) for i in range(60)])
CHAT = ListRows([(f"the day {i} ", "hello " * (i % 3 + 1)) for i in range(40)])
SIZES = {"global_batch_size": 4, "micro_batch_size": 4, "block_size": 64, "packing": False}


def opened(folder: Path, weights: dict[str, float] | None = None, **options: Any) -> tuple[SFTData, MixedRows]:
    mixture = RowMixture({"maths": MATHS, "chat": CHAT}, weights)
    data = SFTData(mixture, tokenizer_dir=folder, **{**SIZES, **options})
    data.setup("fit")
    rows = data._rows["train"]
    assert isinstance(rows, MixedRows)
    return data, rows


def learned(rows: MixedRows, k: int) -> int:
    return int(rows.supervised[rows.set_of_row == k].sum())


def test_without_weights_every_row_of_every_set_is_there_once(tokenizer_folder: Path) -> None:
    data, rows = opened(tokenizer_folder)
    assert rows.n_of_set == [60, 40]
    assert sorted(zip(rows.set_of_row, rows.index_in_set, strict=True)) == [
        *((0, i) for i in range(60)),
        *((1, i) for i in range(40)),
    ]
    stats = data.stats()
    assert [stats[name]["n_documents"] for name in ("train/maths", "train/chat", "train")] == [60, 40, 100]
    both = stats["train/maths"]["n_supervised"] + stats["train/chat"]["n_supervised"]
    assert stats["train"]["n_supervised"] == both


def test_weights_are_relative_shares_of_learned_tokens(tokenizer_folder: Path) -> None:
    _, plain = opened(tokenizer_folder)
    data, rows = opened(tokenizer_folder, {"maths": 1, "chat": 3})
    one_row = int(rows.supervised.max())
    whole = plain.supervised.sum()
    assert abs(learned(rows, 0) - whole / 4) <= 2 * one_row
    assert abs(learned(rows, 1) - whole * 3 / 4) <= 2 * one_row
    assert data.fingerprint()["weights"] == {"maths": 1, "chat": 3}


def test_over_the_epochs_every_row_of_a_set_is_taken_equally_often(tokenizer_folder: Path) -> None:
    _, rows = opened(tokenizer_folder, {"maths": 1, "chat": 3})
    for k, n in enumerate((60, 40)):
        epochs = [rows.of_epoch(epoch) for epoch in range(7)]
        taken = np.concatenate([one.index_in_set[one.set_of_row == k] for one in epochs])
        counts = np.bincount(taken, minlength=n)
        assert counts.max() - counts.min() <= 1
    assert rows.n_of_set[0] < 60  # a part of the one
    assert rows.n_of_set[1] > 40  # the other again and again


def global_batches(rows: MixedRows, world_size: int, micro_batch_size: int) -> list[list[tuple[int, ...]]]:
    """The rows of every global batch of two epochs, over all ranks, without padding and sorted."""
    orders = [Order(len(rows), 4, micro_batch_size, world_size, rank, seed=3) for rank in range(world_size)]
    seen: list[list[tuple[int, ...]]] = [[] for _ in range(2 * orders[0].steps)]
    for order in orders:
        loader = TokenLoader(rows, order)
        for number, batch in enumerate(batch for _ in range(2) for batch in loader):
            real = [t[d >= 0].tolist() for t, d in zip(batch["tokens"], batch["documents"], strict=True)]
            seen[number // order.per_step] += [tuple(row) for row in real if row]
    return [sorted(one) for one in seen]


def test_a_global_batch_is_a_function_of_seed_epoch_and_index_alone(tokenizer_folder: Path) -> None:
    """On one rank, on two with two micro-batches each, and where a run goes on in the second epoch."""
    _, rows = opened(tokenizer_folder, {"maths": 1, "chat": 3}, seed=3)
    straight = global_batches(rows, 1, 4)
    assert straight == global_batches(rows, 2, 1)
    assert straight[: len(straight) // 2] != straight[len(straight) // 2 :]
    loader = TokenLoader(opened(tokenizer_folder, {"maths": 1, "chat": 3}, seed=3)[1], Order(len(rows), 4, 4, 1, 0, 3))
    loader.load_state_dict({**loader.state_dict(), "epoch": 1, "global_batch": 5})
    resumed = [
        sorted(tuple(t[d >= 0].tolist()) for t, d in zip(batch["tokens"], batch["documents"], strict=True) if d[0] >= 0)
        for batch in loader
    ]
    assert resumed == straight[len(straight) // 2 + 5 :]
    _, other = opened(tokenizer_folder, {"maths": 1, "chat": 3}, seed=4)
    assert other.index_in_set.tolist() != rows.index_in_set.tolist()


def test_replay_beside_a_mixture_keeps_the_mixture_of_every_epoch(tokenizer_folder: Path) -> None:
    replay = Replay({"text": ListSource([f"once upon a time {i} " * 9 for i in range(50)])}, 0.2)
    data, mixed = opened(tokenizer_folder, {"maths": 1, "chat": 3}, replay=replay)
    plain = opened(tokenizer_folder, {"maths": 1, "chat": 3})[1]
    n = len(plain)
    for epoch in (0, 1):
        assert mixed.of_epoch(epoch).supervised[:n].tolist() == plain.of_epoch(epoch).supervised.tolist()
    assert data.stats()["train"]["n_replayed"] == len(mixed) - n > 0
    assert learned(mixed, 1) == pytest.approx(0.2 * mixed.supervised.sum(), abs=64)


def test_documents_are_mixed_too(tokenizer_folder: Path) -> None:
    sets: dict[str, Any] = {name: ListSource([f"{name} {i} " * 30 for i in range(20)]) for name in ("books", "web")}
    data = PretrainData(
        TextMixture(sets, {"books": 3, "web": 1}), validation_share=0.2, tokenizer_dir=tokenizer_folder, block_size=32
    )
    data.setup("fit")
    rows = data._rows["train"]
    assert isinstance(rows, MixedRows)
    assert learned(rows, 0) == pytest.approx(3 * learned(rows, 1), rel=0.05)
    stats = data.stats()
    assert stats["train"]["n_documents"] + stats["validation"]["n_documents"] == 40


@pytest.mark.parametrize(
    ("sets", "weights", "message"),
    [
        ({}, None, r"sets = \{\}: expected at least one"),
        ({"": CHAT}, None, "sets = '': expected at least one, each with a name"),
        ({"a": CHAT, "b": MATHS}, {"a": 1}, "weights = .*: expected a number for each of a, b"),
        ({"a": CHAT}, {"a": 0}, "weights.a = 0: expected a number above 0"),
        ({"a": RowMixture({"b": CHAT})}, None, "sets.a: a mixture in a mixture"),
    ],
)
def test_a_bad_mixture_is_named(sets: dict[str, Any], weights: dict[str, float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RowMixture(sets, weights)


def test_a_mixture_with_weights_is_for_training_alone(tokenizer_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"replay\.parts\.old: a mixture with weights; expected its sets as parts"):
        Replay({"old": RowMixture({"a": CHAT}, {"a": 1})})
    with pytest.raises(ValueError, match="validation: a mixture with weights; expected none"):
        SFTData(MATHS, RowMixture({"a": CHAT}, {"a": 1}), tokenizer_dir=tokenizer_folder)
