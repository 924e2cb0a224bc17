"""TokenData: tokenizer, stages, batch arithmetic, fingerprints; resume stands in test_resume.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from lightning.pytorch import Trainer

from lit_consistency.data.pretrain_data import PretrainData
from lit_consistency.data.sft_data import SFTData
from lit_consistency.tasks.completion import CompletionTask
from lit_consistency.tasks.text import TextTask
from lit_consistency.tasks.watched import held_out_task
from tests.data.helpers import ListRows, ListSource
from tests.data.training import PAIRS, Bigram, fit, sft


@pytest.fixture
def folder(tokenizer_folder: Path) -> Path:
    return tokenizer_folder


def test_accumulation_follows_from_the_batch_sizes(folder: Path) -> None:
    module = fit(sft(folder, global_batch_size=8, micro_batch_size=2), max_epochs=1)
    assert module.trainer.accumulate_grad_batches == 4
    assert module.trainer.global_step == 3
    with pytest.raises(ValueError, match="trainer.accumulate_grad_batches = 3: expected 1; .* from which 2 follows"):
        fit(sft(folder), accumulate_grad_batches=3)


def test_a_global_batch_that_does_not_divide_is_refused(folder: Path) -> None:
    data = sft(folder, global_batch_size=6, micro_batch_size=2)
    assert [data.accumulate(world_size) for world_size in (1, 3)] == [3, 1]
    message = r"data.global_batch_size = 6: expected a multiple of data.micro_batch_size \* devices = 2 \* 2 = 4"
    with pytest.raises(ValueError, match=message):
        data.accumulate(2)


@pytest.mark.parametrize(
    ("rows", "block_size", "devices", "expected"),
    [
        (32, 512, 1, 8),  # 4,096 tokens
        (32, 512, 2, 8),
        (32, 512, 8, 4),  # the whole share of a device
        (12, 512, 1, 6),  # a divisor
        (7, 512, 1, 7),
        (11, 512, 1, 1),
        (32, 2048, 1, 2),
        (32, 8192, 1, 1),  # no less than a row
    ],
)
def test_the_micro_batch_follows_where_it_is_not_given(
    rows: int, block_size: int, devices: int, expected: int, folder: Path
) -> None:
    data = sft(folder, global_batch_size=rows, micro_batch_size=None, block_size=block_size)
    assert data.rows_at_once(devices) == expected
    assert data.accumulate(devices) == rows // (devices * expected)


@pytest.mark.parametrize("devices", [3, 16])
def test_devices_that_do_not_divide_the_batch_are_named(devices: int, folder: Path) -> None:
    data = sft(folder, global_batch_size=8, micro_batch_size=None)
    with pytest.raises(ValueError, match=f"data.global_batch_size = 8: expected a multiple of devices = {devices}$"):
        data.accumulate(devices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch_size": 0}, "global_batch_size = 0: expected at least 1"),
        ({"micro_batch_size": -2}, "micro_batch_size = -2: expected at least 1"),
        ({"block_size": 0}, "block_size = 0: expected at least 1"),
        ({"num_workers": -1}, "num_workers = -1: expected at least 0"),
        ({"seed": -1}, "seed = -1: expected at least 0"),
        (
            {"global_batch_size": 6, "micro_batch_size": 4},
            "global_batch_size = 6: expected a multiple of micro_batch_size = 4",
        ),
        ({"prompt_style": "nope"}, "prompt_style = 'nope': expected one of"),
        ({"loss_on": "prompt"}, "loss_on = 'prompt': expected completion or all"),
        ({"group_by_length": True, "packing": True}, "group_by_length = true with packing = true"),
        ({"too_long": "drop"}, "too_long = 'drop': expected truncate or refuse"),
    ],
)
def test_a_value_out_of_range_is_named(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        sft(folder, **options)


def test_a_wrong_tokenizer_folder_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tokenizer_dir = .*nowhere"):
        SFTData(ListRows(PAIRS), tokenizer_dir=tmp_path / "nowhere")


def test_validation_test_and_prediction_run_on_what_is_held_out(folder: Path) -> None:
    data = sft(folder, validation=ListRows(PAIRS[:5]))
    module = fit(data, max_epochs=1)
    trainer = module.trainer
    validated = trainer.validate(module, data, verbose=False)[0]["val"]
    assert trainer.test(module, data, verbose=False)[0]["val"] == validated > 0
    predicted = trainer.predict(module, data)
    assert predicted is not None
    assert sum(int(value) for value in predicted) == data.stats()["validation"]["n_supervised"]


def test_a_stage_without_held_out_rows_is_refused(folder: Path) -> None:
    module = fit(sft(folder), max_epochs=1)
    with pytest.raises(ValueError, match="data.validation = null: expected what is held out, `validate` runs on it"):
        module.trainer.validate(module, sft(folder))


def test_prediction_runs_on_the_rows_where_nothing_is_held_out(folder: Path) -> None:
    data = sft(folder)
    trainer = fit(data, max_epochs=1).trainer
    predicted = trainer.predict(trainer.lightning_module, data)
    assert predicted is not None
    assert sum(int(value) for value in predicted) == data.stats()["train"]["n_supervised"]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_data_of_a_fit_refuse_a_stage_without_held_out_rows_too(stage: str, folder: Path) -> None:
    data = sft(folder)
    module = fit(data, max_epochs=1)
    with pytest.raises(ValueError, match=f"data.validation = null: expected what is held out, `{stage}` runs on it"):
        getattr(module.trainer, stage)(module, data)


def test_a_fit_without_held_out_rows_leaves_the_trainer_able_to_validate(folder: Path) -> None:
    module = fit(sft(folder), max_epochs=1)
    assert module.trainer.validate(module, sft(folder, validation=ListRows(PAIRS[:5])), verbose=False)[0]["val"] > 0


def test_held_out_rows_are_shared_among_ranks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sft(folder, validation=ListRows(PAIRS[:5]))
    data.setup("validate")
    counts = []
    for rank in range(2):
        monkeypatch.setattr(data, "_ranks", lambda rank=rank: (2, rank))
        loader = data.val_dataloader()
        counts.append([int((batch["targets"] != -100).sum()) for batch in loader])
    assert len(counts[0]) == len(counts[1]) == 2
    assert sum(map(sum, counts)) == data.stats()["validation"]["n_supervised"]


class OwnTokenizer(ListRows):
    raw: tokenizers.Tokenizer

    def default_tokenizer(self) -> tokenizers.Tokenizer:
        return self.raw


def test_tokenizer_is_the_option_then_the_models_then_the_datas(
    folder: Path, tmp_path: Path, raw_tokenizer: tokenizers.Tokenizer
) -> None:
    rows = OwnTokenizer(PAIRS)
    rows.raw = raw_tokenizer
    own = SFTData(rows, cache_dir=tmp_path / "tokens")
    assert own.tokenizer_folder.parent == tmp_path / "tokens" / "tokenizers"
    assert own.tokenizer.vocab_size == raw_tokenizer.get_vocab_size()
    own.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    own.trainer.strategy.connect(Bigram(5, checkpoint_dir=folder))
    assert own.tokenizer_folder == own.tokenizer.folder == folder
    assert SFTData(rows, tokenizer_dir=folder).tokenizer_folder == folder
    with pytest.raises(ValueError, match="tokenizer_dir = null: expected a folder with tokenizer.json"):
        SFTData(ListRows(PAIRS)).tokenizer_folder  # noqa: B018


def test_nothing_is_written_before_preparation(folder: Path, tmp_path: Path) -> None:
    sft(folder, cache_dir=tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


def test_prepared_tokens_are_opened_by_the_next_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sft(folder).prepare_data()
    monkeypatch.setattr(SFTData, "_build", lambda *_: pytest.fail("built again"))
    data = sft(folder)
    data.prepare_data()
    data.setup("fit")
    assert data.steps_per_epoch == 6


def test_order_takes_the_seed_of_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sft(folder, seed=None).fingerprint()["seed"] == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "42")
    assert sft(folder, seed=None).fingerprint()["seed"] == 42
    assert sft(folder, seed=0).fingerprint()["seed"] == 0


def test_fingerprint_follows_what_changes_batches_and_nothing_else(folder: Path) -> None:
    same = sft(folder).fingerprint()
    assert sft(folder, micro_batch_size=1, num_workers=1).fingerprint() == same
    for options in ({"seed": 1}, {"global_batch_size": 8}, {"block_size": 32}, {"packing": True}, {"loss_on": "all"}):
        assert sft(folder, **options).fingerprint() != same


def test_the_held_out_part_of_the_data_is_a_task_in_the_style_of_training(folder: Path) -> None:
    conversations = sft(folder, validation=ListRows(PAIRS[:5]), prompt_style="falcon")
    held_out = held_out_task(conversations, conversations.tokenizer, block_size=64)
    assert isinstance(held_out.task, CompletionTask)
    assert held_out.task.prompt_style == "falcon"
    assert len(held_out.encoded.questions) == 5
    source = ListSource(["the day"])
    text = PretrainData(source, source, tokenizer_dir=folder)
    assert isinstance(held_out_task(text, text.tokenizer, block_size=64).task, TextTask)
