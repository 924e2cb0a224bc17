"""TokenData under a real Trainer: resume, accumulation, stages. The model is one embedding, so that every sample counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_consistency.data.pretrain_data import PretrainData
from lit_consistency.data.sft_data import SFTData
from lit_consistency.data.token_data import TokenData
from lit_consistency.data.watch import RowSet, TextSet
from tests.data.helpers import ListRows, ListSource

PAIRS = [(f"the question {i} ", "the answer " * (i % 4 + 1) + str(i)) for i in range(21)]


class Bigram(LightningModule):
    """Logits of the next token by a table; keeps the batches it has seen."""

    def __init__(self, vocab_size: int, checkpoint_dir: Path | None = None) -> None:
        super().__init__()
        self.checkpoint_dir = checkpoint_dir
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.table.weight)
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch["tokens"].flatten().tolist())
        loss = self._nll(batch) / batch["supervised"]
        return loss * self.trainer.accumulate_grad_batches

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val", self._nll(batch), reduce_fx="sum")

    test_step = validation_step

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return (batch["targets"] != -100).sum()

    def _nll(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.table(batch["tokens"])
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class SaveAndStop(Callback):
    """Saves behind the optimizer step of this number, and stops there."""

    def __init__(self, step: int, file: Path) -> None:
        self.step = step
        self.file = file

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.file.exists():
            trainer.save_checkpoint(self.file)
            trainer.should_stop = True


@pytest.fixture
def folder(tokenizer_folder: Path) -> Iterator[Path]:
    yield tokenizer_folder


def sft(folder: Path, **options: Any) -> SFTData:
    defaults = {"global_batch_size": 4, "micro_batch_size": 2, "block_size": 64, "packing": False, "seed": 5}
    return SFTData(ListRows(PAIRS), tokenizer_dir=folder, **{**defaults, **options})


def fit(data: TokenData, callback: Callback | None = None, resume: Path | None = None, **options: Any) -> Bigram:
    module = Bigram(350)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[callback] if callback else None,
        **{"max_epochs": 3, **options},
    )
    trainer.fit(module, data, ckpt_path=resume)
    return module


LIMITS: dict[str, dict[str, int]] = {"epochs": {"max_epochs": 3}, "steps": {"max_epochs": -1, "max_steps": 18}}


@pytest.fixture(scope="module")
def straight_runs(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bigram]:
    """Runs without a stop. 21 rows, 4 a step: 6 steps an epoch, each of 2 micro-batches."""
    cache_dir = tmp_path_factory.mktemp("tokens")
    return {name: fit(sft(tokenizer_folder, cache_dir=cache_dir), **limit) for name, limit in LIMITS.items()}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("step", [1, 6, 8, 12])
def test_straight_equals_stopped_and_resumed(
    step: int, name: str, straight_runs: dict[str, Bigram], folder: Path, tmp_path: Path
) -> None:
    """The stops lie inside the first and the second epoch, and at their ends."""
    straight, limit = straight_runs[name], LIMITS[name]
    first = fit(sft(folder), SaveAndStop(step, tmp_path / "half.ckpt"), **limit)
    second = fit(sft(folder), resume=tmp_path / "half.ckpt", **limit)
    assert first.seen + second.seen == straight.seen
    assert len(straight.seen) == 36
    assert torch.equal(second.table.weight, straight.table.weight)


class SaveInside(Callback):
    """Saves behind the first of two micro-batches of a step, and stops there."""

    def __init__(self, step: int, file: Path) -> None:
        self.step = step
        self.file = file

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.fit_loop.batch_idx % 2 == 0:
            trainer.save_checkpoint(self.file)
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("step", [2, 6, 11])
def test_resume_inside_an_accumulation_repeats_the_step(
    step: int, name: str, straight_runs: dict[str, Bigram], folder: Path, tmp_path: Path
) -> None:
    straight, limit = straight_runs[name], LIMITS[name]
    with pytest.raises(SystemExit):
        fit(sft(folder), SaveInside(step, tmp_path / "half.ckpt"), **limit)
    second = fit(sft(folder), resume=tmp_path / "half.ckpt", **limit)
    assert second.seen == straight.seen[2 * step :]
    assert torch.equal(second.table.weight, straight.table.weight)
    loops = [module.trainer.fit_loop.epoch_loop for module in (straight, second)]
    assert loops[0]._batches_that_stepped == loops[1]._batches_that_stepped == 18


def test_resume_with_workers_and_packing(folder: Path, tmp_path: Path) -> None:
    options = {"num_workers": 2, "packing": True, "global_batch_size": 2, "micro_batch_size": 1}
    straight = fit(sft(folder, **options))
    steps = len(straight.seen) // 2
    first = fit(sft(folder, **options), SaveAndStop(steps // 2, tmp_path / "half.ckpt"))
    second = fit(sft(folder, **options), resume=tmp_path / "half.ckpt")
    assert first.seen + second.seen == straight.seen
    assert torch.equal(second.table.weight, straight.table.weight)


@pytest.mark.parametrize("micro", [1, 4])
def test_resume_with_another_micro_batch_goes_on_at_the_same_step(
    micro: int, straight_runs: dict[str, Bigram], folder: Path, tmp_path: Path
) -> None:
    straight = straight_runs["epochs"]
    fit(sft(folder), SaveAndStop(8, tmp_path / "half.ckpt"))
    second = fit(sft(folder, micro_batch_size=micro), resume=tmp_path / "half.ckpt")
    assert second.trainer.global_step == 18
    assert second.trainer.current_epoch == 3
    assert len(second.seen) == 10 * 4 // micro
    torch.testing.assert_close(second.table.weight, straight.table.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro", [1, 4])
def test_the_micro_batch_does_not_change_training(micro: int, straight_runs: dict[str, Bigram], folder: Path) -> None:
    module = fit(sft(folder, micro_batch_size=micro))
    torch.testing.assert_close(module.table.weight, straight_runs["epochs"].table.weight, rtol=1e-5, atol=1e-6)


def test_limit_train_batches_does_not_repeat_the_epoch(straight_runs: dict[str, Bigram], folder: Path) -> None:
    module = fit(sft(folder), limit_train_batches=2, max_epochs=2)
    straight = straight_runs["epochs"]
    assert module.seen == straight.seen[:2] + straight.seen[12:14]


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


def test_held_out_parts_can_be_watched(folder: Path) -> None:
    watched = sft(folder, validation=ListRows(PAIRS[:5]), prompt_style="falcon").validation_set()
    assert isinstance(watched, RowSet)
    assert watched.prompt_style == "falcon"
    source = ListSource(["the day"])
    assert isinstance(PretrainData(source, source, tokenizer_dir=folder).validation_set(), TextSet)
    for data in (sft(folder), PretrainData(source, tokenizer_dir=folder)):
        with pytest.raises(ValueError, match="data.validation = null"):
            data.validation_set()
