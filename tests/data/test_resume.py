"""N steps straight are N/2 steps, a checkpoint, and N/2 steps, under Lightning's own loops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.data.training import Bigram, SaveAndStop, SaveInside, fit, sft

LIMITS: dict[str, dict[str, int]] = {"epochs": {"max_epochs": 3}, "steps": {"max_epochs": -1, "max_steps": 18}}


@pytest.fixture(scope="module")
def straight_runs(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bigram]:
    """Runs without a stop. 21 rows, 4 a step: 6 steps an epoch, each of 2 micro-batches."""
    cache_dir = tmp_path_factory.mktemp("tokens")
    return {name: fit(sft(tokenizer_folder, cache_dir=cache_dir), **limit) for name, limit in LIMITS.items()}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("step", [1, 6, 8, 12])
def test_straight_equals_stopped_and_resumed(
    step: int, name: str, straight_runs: dict[str, Bigram], tokenizer_folder: Path, tmp_path: Path
) -> None:
    """The stops lie inside the first and the second epoch, and at their ends."""
    straight, limit = straight_runs[name], LIMITS[name]
    first = fit(sft(tokenizer_folder), SaveAndStop(step, tmp_path / "half.ckpt"), **limit)
    second = fit(sft(tokenizer_folder), resume=tmp_path / "half.ckpt", **limit)
    assert first.seen + second.seen == straight.seen
    assert len(straight.seen) == 36
    assert torch.equal(second.table.weight, straight.table.weight)


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("step", [2, 6, 11])
def test_resume_inside_an_accumulation_repeats_the_step(
    step: int, name: str, straight_runs: dict[str, Bigram], tokenizer_folder: Path, tmp_path: Path
) -> None:
    straight, limit = straight_runs[name], LIMITS[name]
    with pytest.raises(SystemExit):
        fit(sft(tokenizer_folder), SaveInside(step, tmp_path / "half.ckpt"), **limit)
    second = fit(sft(tokenizer_folder), resume=tmp_path / "half.ckpt", **limit)
    assert second.seen == straight.seen[2 * step :]
    assert torch.equal(second.table.weight, straight.table.weight)
    loops = [module.trainer.fit_loop.epoch_loop for module in (straight, second)]
    assert loops[0]._batches_that_stepped == loops[1]._batches_that_stepped == 18


def test_resume_with_workers_and_packing(tokenizer_folder: Path, tmp_path: Path) -> None:
    options = {"num_workers": 2, "packing": True, "global_batch_size": 2, "micro_batch_size": 1}
    straight = fit(sft(tokenizer_folder, **options))
    steps = len(straight.seen) // 2
    first = fit(sft(tokenizer_folder, **options), SaveAndStop(steps // 2, tmp_path / "half.ckpt"))
    second = fit(sft(tokenizer_folder, **options), resume=tmp_path / "half.ckpt")
    assert first.seen + second.seen == straight.seen
    assert torch.equal(second.table.weight, straight.table.weight)


@pytest.mark.parametrize("micro", [1, 4])
def test_resume_with_another_micro_batch_goes_on_at_the_same_step(
    micro: int, straight_runs: dict[str, Bigram], tokenizer_folder: Path, tmp_path: Path
) -> None:
    straight = straight_runs["epochs"]
    fit(sft(tokenizer_folder), SaveAndStop(8, tmp_path / "half.ckpt"))
    second = fit(sft(tokenizer_folder, micro_batch_size=micro), resume=tmp_path / "half.ckpt")
    assert second.trainer.global_step == 18
    assert second.trainer.current_epoch == 3
    assert len(second.seen) == 10 * 4 // micro
    torch.testing.assert_close(second.table.weight, straight.table.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro", [1, 4])
def test_the_micro_batch_does_not_change_training(
    micro: int, straight_runs: dict[str, Bigram], tokenizer_folder: Path
) -> None:
    module = fit(sft(tokenizer_folder, micro_batch_size=micro))
    torch.testing.assert_close(module.table.weight, straight_runs["epochs"].table.weight, rtol=1e-5, atol=1e-6)


def test_limit_train_batches_does_not_repeat_the_epoch(
    straight_runs: dict[str, Bigram], tokenizer_folder: Path
) -> None:
    module = fit(sft(tokenizer_folder), limit_train_batches=2, max_epochs=2)
    straight = straight_runs["epochs"]
    assert module.seen == straight.seen[:2] + straight.seen[12:14]
