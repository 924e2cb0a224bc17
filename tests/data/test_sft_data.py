from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_consistency.data.sft_data import SFTData
from tests.data.helpers import ListRows

PAIRS = [(f"the question {i} ", "the answer " * (i % 5 + 1) + str(i)) for i in range(30)]


def opened(folder: Path, pairs: list[tuple[str, str]] = PAIRS, **options: Any) -> SFTData:
    data = SFTData(ListRows(pairs), tokenizer_dir=folder, **{"global_batch_size": 4, "micro_batch_size": 4, **options})
    data.setup()
    return data


def gradient(data: SFTData) -> Tensor:
    """Gradient of one epoch's summed loss for a table of next tokens, which sees no more than the batch's pairs."""
    table = nn.Embedding(350, 350, dtype=torch.float64)
    nn.init.zeros_(table.weight)
    for batch in data.train_dataloader():
        logits = table(batch["tokens"]).flatten(0, 1)
        nn.functional.cross_entropy(logits, batch["targets"].flatten(), reduction="sum").backward()
    assert table.weight.grad is not None
    return table.weight.grad


def test_packing_keeps_every_pair_of_token_and_target(tokenizer_folder: Path) -> None:
    packed, loose = (opened(tokenizer_folder, block_size=64, packing=packing) for packing in (True, False))
    assert packed.stats()["train"]["n_rows"] < loose.stats()["train"]["n_rows"] == 30
    assert packed.stats()["train"]["n_supervised"] == loose.stats()["train"]["n_supervised"]
    torch.testing.assert_close(gradient(packed), gradient(loose), rtol=1e-12, atol=1e-12)


def test_packed_batches_have_one_shape_and_loose_ones_fit_their_rows(tokenizer_folder: Path) -> None:
    packed = {tuple(batch["tokens"].shape) for batch in opened(tokenizer_folder, block_size=64).train_dataloader()}
    assert packed == {(4, 64)}
    loose = opened(tokenizer_folder, block_size=512, packing=False).train_dataloader()
    for batch in loose:
        longest = int((batch["documents"] >= 0).sum(1).max())
        assert batch["tokens"].shape[1] == -(-longest // 8) * 8
        assert batch["documents"].max() == 0


def test_every_training_batch_learns_something(tokenizer_folder: Path) -> None:
    loader = opened(tokenizer_folder, micro_batch_size=1, packing=False).train_dataloader()
    assert min(int(batch["supervised"]) for batch in loader) > 0


def test_rows_that_are_all_cut_away_are_an_error(tokenizer_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"ListRows gives nothing to learn from \(1 dropped\)"):
        opened(tokenizer_folder, [("x" * 50, "y")], block_size=8)


def test_counts_tell_what_was_cut(tokenizer_folder: Path) -> None:
    stats = opened(tokenizer_folder, block_size=16).stats()["train"]
    assert stats["n_truncated"] > 0
    assert stats["n_documents"] + stats["n_dropped"] == 30


def test_a_bad_row_leaves_nothing_in_the_cache(tokenizer_folder: Path, tmp_path: Path) -> None:
    data = SFTData(
        ListRows([("x" * 50, "y")]),
        tokenizer_dir=tokenizer_folder,
        block_size=8,
        too_long="refuse",
        cache_dir=tmp_path / "t",
    )
    with pytest.raises(ValueError, match="list:1: "):
        data.prepare_data()
    assert [path for path in (tmp_path / "t").iterdir() if path.is_dir()] == []
