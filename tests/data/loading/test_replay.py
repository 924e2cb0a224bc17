from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_consistency.data.loading.mixed_rows import draw
from lit_consistency.data.loading.replay import Replay
from lit_consistency.data.pretrain_data import PretrainData
from lit_consistency.data.sft_data import SFTData
from tests.data.helpers import ListRows, ListSource

NEW = [(f"new question {i} ", "new answer " * (i % 5 + 1)) for i in range(60)]
OLD = [(f"old question {i} ", "old answer " * (i % 3 + 1)) for i in range(40)]
TEXT = ListSource([f"once upon a time {i} " * 20 for i in range(50)])


def opened(folder: Path, replay: Replay | None, **options: Any) -> SFTData:
    sizes = {"global_batch_size": 4, "micro_batch_size": 4, "block_size": 64}
    data = SFTData(ListRows(NEW), tokenizer_dir=folder, replay=replay, **{**sizes, **options})
    data.setup("fit")
    return data


def shares(data: SFTData) -> tuple[int, int]:
    """Learned tokens of an epoch that are not replayed, and those that are."""
    rows = data._rows["train"]
    first = rows.n_of_set[0]  # type: ignore[attr-defined]
    return int(rows.supervised[:first].sum()), int(rows.supervised[first:].sum())


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize(("packing", "part"), [(True, TEXT), (False, ListRows(OLD))], ids=["text", "rows"])
def test_the_share_is_that_of_learned_tokens(tokenizer_folder: Path, share: float, packing: bool, part: Any) -> None:
    data = opened(tokenizer_folder, Replay({"old": part}, share), packing=packing)
    new, old = shares(data)
    one_row = int(data._rows["train"].supervised.max())
    assert abs(old - share * (new + old)) <= one_row


def test_an_epoch_has_every_row_of_the_new_task_once(tokenizer_folder: Path) -> None:
    plain, mixed = opened(tokenizer_folder, None), opened(tokenizer_folder, Replay({"text": TEXT}, 0.3))
    learned = [
        sum(int((batch["targets"] != -100).sum()) for batch in data.train_dataloader()) for data in (plain, mixed)
    ]
    assert (learned[0], learned[1] - learned[0]) == shares(mixed)
    assert mixed.stats()["train"]["n_replayed"] > 0
    assert "replay/text" in mixed.stats()


def test_parts_have_the_shares_that_are_given_to_them(tokenizer_folder: Path) -> None:
    replay = Replay({"text": TEXT, "rows": ListRows(OLD)}, {"rows": 0.1, "text": 0.4})
    data = opened(tokenizer_folder, replay)
    rows = data._rows["train"]
    new, text, old = (int(rows.supervised[rows.set_of_row == i].sum()) for i in (0, 1, 2))  # type: ignore[attr-defined]
    one_row = int(rows.supervised.max())
    assert abs(text - 0.4 * (new + text + old)) <= one_row
    assert abs(old - 0.1 * (new + text + old)) <= one_row
    for wrong in ({"text": 0.5}, {"text": 0.5, "rows": 0.5}, {"text": 0.5, "rows": 0.0}):
        with pytest.raises(ValueError, match=r"replay\.share"):
            Replay({"text": TEXT, "rows": ListRows(OLD)}, wrong)


def test_parts_have_equal_shares(tokenizer_folder: Path) -> None:
    data = opened(tokenizer_folder, Replay({"text": TEXT, "rows": ListRows(OLD)}, 0.5))
    rows = data._rows["train"]
    text, old = (int(rows.supervised[rows.set_of_row == i].sum()) for i in (1, 2))  # type: ignore[attr-defined]
    assert abs(text - old) <= 2 * int(rows.supervised.max())


def test_the_draw_is_a_function_of_the_seed(tokenizer_folder: Path) -> None:
    numbers = [
        opened(tokenizer_folder, Replay({"text": TEXT}, 0.3), seed=seed)._rows["train"].index_in_set.tolist()  # type: ignore[attr-defined]
        for seed in (1, 1, 2)
    ]
    assert numbers[0] == numbers[1] != numbers[2]


def test_over_the_epochs_every_row_is_replayed_equally_often() -> None:
    epochs = [draw(7, 3, seed=0, stream=0, epoch=epoch).tolist() for epoch in range(14)]
    assert [len(epoch) for epoch in epochs] == [3] * 14
    assert np.bincount(sum(epochs, [])).tolist() == [6] * 7
    assert sorted(sum(epochs, [])[:7]) == list(range(7))


def test_more_than_there_is_repeats_every_row_equally() -> None:
    counts = np.bincount(draw(3, 8, seed=0, stream=0, epoch=1), minlength=3)
    assert counts.sum() == 8
    assert counts.max() - counts.min() <= 2


def test_every_epoch_replays_other_rows_and_a_resumed_one_the_same(tokenizer_folder: Path) -> None:
    data = opened(tokenizer_folder, Replay({"text": TEXT}, 0.1))
    loader = data.train_dataloader()
    epochs = [[batch["tokens"] for batch in loader] for _ in range(2)]
    old = [data._rows["train"].of_epoch(epoch).index_in_set[-2:].tolist() for epoch in range(2)]  # type: ignore[attr-defined]
    assert set(old[0]).isdisjoint(old[1])
    again = data.train_dataloader()
    again.on_resume = None  # no Trainer here whose counts would follow
    again.load_state_dict({**loader.state_dict(), "epoch": 1, "global_batch": 2, "micro_batch": 0})
    rest = [batch["tokens"] for batch in again]
    assert len(rest) == len(epochs[1]) - 2
    assert all(torch.equal(a, b) for a, b in zip(rest, epochs[1][2:], strict=True))


def test_at_least_one_row_is_replayed(tokenizer_folder: Path) -> None:
    assert opened(tokenizer_folder, Replay({"text": TEXT}, 0.001)).stats()["train"]["n_replayed"] == 1


def test_the_fingerprint_tells_what_is_replayed(tokenizer_folder: Path) -> None:
    found = [
        opened(tokenizer_folder, replay).fingerprint()
        for replay in (
            None,
            Replay({"text": TEXT}, 0.3),
            Replay({"text": TEXT}, 0.2),
            Replay({"o": ListRows(OLD)}, 0.3),
        )
    ]
    assert all(found.count(one) == 1 for one in found)


def test_documents_are_replayed_in_pretraining(tokenizer_folder: Path) -> None:
    data = PretrainData(
        ListSource(["a new text " * 30]),
        replay=Replay({"old": TEXT}, 0.5),
        tokenizer_dir=tokenizer_folder,
        block_size=32,
    )
    data.setup("fit")
    new, old = shares(data)  # type: ignore[arg-type]
    assert abs(old - new) <= 32


def test_conversations_are_refused_in_pretraining() -> None:
    with pytest.raises(ValueError, match=r"replay.parts.old = ListRows: expected documents"):
        PretrainData(TEXT, replay=Replay({"old": ListRows(OLD)}))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_outside_zero_and_one_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Replay({"text": TEXT}, share)


def test_no_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        Replay({})
