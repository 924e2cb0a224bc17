from __future__ import annotations

import numpy as np
import torch

from lit_consistency.data.loading.collate import EMPTY, collate
from lit_consistency.data.tokens.token_rows import PackedSequence

ROW = PackedSequence(np.array([5, 6, 7]), np.array([-100, 7, 8]), np.array([0, 0, 1]), np.array([0, 1, 1]))


def test_rows_are_padded_on_the_right() -> None:
    batch = collate([ROW, EMPTY], length=4, supervised=9)
    assert batch["tokens"].tolist() == [[5, 6, 7, 0], [0, 0, 0, 0]]
    assert batch["targets"].tolist() == [[-100, 7, 8, -100], [-100] * 4]
    assert batch["positions"].tolist() == [[0, 0, 1, 0], [0] * 4]
    assert batch["documents"].tolist() == [[0, 1, 1, -1], [-1] * 4]
    assert batch["supervised"].item() == 9


def test_types_are_those_of_the_contract() -> None:
    types = {name: tensor.dtype for name, tensor in collate([ROW], supervised=1).items()}
    integers = dict.fromkeys(("tokens", "targets", "positions", "supervised"), torch.int64)
    assert types == {**integers, "documents": torch.int32}


def test_length_is_the_longest_row_rounded_up() -> None:
    long = PackedSequence(*(np.zeros(9, dtype=np.int64) for _ in range(4)))
    assert collate([ROW])["tokens"].shape == (1, 8)
    assert collate([ROW, long])["tokens"].shape == (2, 16)
    assert collate([EMPTY])["tokens"].shape == (1, 8)


def test_batches_for_evaluation_have_no_count_of_the_step() -> None:
    assert "supervised" not in collate([ROW])
