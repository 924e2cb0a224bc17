from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lit_consistency.callbacks import Throughput
from lit_consistency.callbacks import throughput as throughput_file
from lit_consistency.callbacks.throughput import available_flops, flops_per_token
from tests.runs import fit


def a_trainer(**options: Any) -> Any:
    defaults = {"callbacks": [], "accumulate_grad_batches": 1, "global_step": 0, "log_every_n_steps": 1000}
    return SimpleNamespace(**defaults | {"world_size": 1, "precision": "32-true"} | options)


def a_batch(n_tokens: int) -> dict[str, torch.Tensor]:
    """One row, all of it supervised, and one position of padding."""
    documents = torch.tensor([[0] * n_tokens + [-1]])
    return {"documents": documents, "targets": torch.where(documents >= 0, 1, -100)}


ON_CPU: Any = SimpleNamespace(device=torch.device("cpu"))


def test_tokens_and_parts_of_a_step_are_logged(tmp_path: Path) -> None:
    cli = fit(tmp_path, "--throughput.warmup_steps=1", "--trainer.max_steps=6", "--forgetting.every_n_steps=3")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    speeds = [line for line in lines if "speed/tokens_per_second" in line]
    assert [line["step"] for line in speeds] == [2, 3, 4, 5, 6]
    for line in speeds:
        assert line["speed/tokens_per_second"] >= line["speed/supervised_tokens_per_second"] > 0
        assert line["speed/forward_backward_ms"] > 0
        assert line["speed/optimizer_ms"] > 0
        assert line["speed/peak_memory_gib"] > 0.01
    assert [line["step"] for line in speeds if line["speed/evaluation_ms"] > 0] == [3, 6]
    throughput = next(c for c in cli.trainer.callbacks if isinstance(c, Throughput))
    assert throughput.total_tokens(1) == 6 * 8 * 32  # steps, rows, tokens: all rows but the epoch's last are full


def test_flops_of_a_token_are_those_of_palm() -> None:
    from litgpt.model import GPT

    model = GPT.from_name("pythia-14m", n_layer=2, n_head=2, n_embd=8, padded_vocab_size=32, intermediate_size=16)
    blocks, head = 2 * (24 * 8 + 8 * 8 + 16 * 8 + 8 * 16), 32 * 8
    attention = 12 * 2 * 2 * 4 * 10
    assert flops_per_token(model, 10) == 6 * (blocks + head) + attention
    model.transformer.requires_grad_(False)  # a frozen matrix has no gradient of its own
    assert flops_per_token(model, 10) == 4 * blocks + 6 * head + attention


def test_the_peak_of_a_cpu_is_not_known() -> None:
    assert available_flops(torch.device("cpu"), None) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "matmul", "peak"),
    [
        ("bf16-mixed", "highest", 989.5e12),
        ("16-true", "highest", 989.5e12),
        ("32-true", "high", 494.7e12),
        ("32-true", "highest", 67e12),
    ],
)
def test_the_peak_of_an_h200_is_the_dense_one(
    precision: str, matmul: str, peak: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: matmul)
    assert available_flops(torch.device("cuda"), a_trainer(precision=precision)) == int(peak)


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H100 80GB HBM3", 989_400_000_000_000), ("NVIDIA H200 MIG 1g.18gb", None), ("X", None)]
)
def test_other_peaks_are_those_of_lightning_which_may_be_unknown_without_a_warning(
    name: str, peak: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    assert available_flops(torch.device("cuda"), a_trainer(precision="bf16-true")) == peak


def test_validation_and_saving_are_no_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, logged = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(throughput_file, "language_model", lambda module: module)
    trainer, module = a_trainer(log_every_n_steps=2), SimpleNamespace(device=torch.device("cpu"), log_now=logged.append)
    throughput = Throughput(warmup_steps=0)

    def after(seconds: float, hook: str, *arguments: Any) -> None:
        now[0] += seconds
        getattr(throughput, hook)(trainer, module, *arguments)

    def step(wait: float) -> None:
        after(wait, "on_train_batch_start", a_batch(10), trainer.global_step)
        after(2, "on_before_optimizer_step", None)
        trainer.global_step += 1
        after(1, "on_train_batch_end", None, a_batch(10), trainer.global_step - 1)

    after(100, "on_train_start")
    step(wait=1)
    after(0, "on_save_checkpoint", {})
    after(5, "on_validation_start")  # the checkpoint was written
    after(10, "on_validation_end")
    step(wait=3)
    assert len(logged) == 1
    milliseconds = {name: value for name, value in logged[0].items() if name.endswith("_ms")}
    parts = {"data": 2000, "forward_backward": 2000, "optimizer": 1000, "evaluation": 5000, "saving": 2500}
    assert milliseconds == {f"speed/{part}_ms": value for part, value in parts.items()}  # means of two steps
    assert logged[0]["speed/tokens_per_second"] == 20 / (1 + 2 + 1 + 3 + 2 + 1)
    after(0, "on_save_checkpoint", {})
    step(wait=7)
    step(wait=3)
    assert logged[1]["speed/saving_ms"] == 3500
    assert logged[1]["speed/data_ms"] == 1500


def test_a_checkpoint_of_a_run_is_time_of_saving(tmp_path: Path) -> None:
    fit(tmp_path, "--throughput.warmup_steps=0", "--trainer.max_steps=5", "--checkpoint.every_n_steps=2")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    saving = {line["step"]: line["speed/saving_ms"] for line in lines if "speed/saving_ms" in line}
    assert {step: ms > 0 for step, ms in saving.items()} == {1: False, 2: False, 3: True, 4: False, 5: True}


def train(throughput: Throughput, *n_tokens: int) -> None:
    """Steps of one micro-batch."""
    throughput.on_train_start(a_trainer(), ON_CPU)
    for index, n in enumerate(n_tokens):
        throughput.on_train_batch_end(a_trainer(global_step=index + 1), ON_CPU, None, a_batch(n), index)


def _one_of_two_ranks(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    first = Throughput(warmup_steps=1)
    train(first, 10 + rank, 100)
    assert first.total_tokens(2) == 2 * (110 + rank)  # not known yet
    saved = first.state_dict()
    assert saved["total"].tolist() == [221, 221]
    resumed = Throughput(warmup_steps=1)
    resumed.load_state_dict(saved)
    train(resumed, 1000, 1000 + rank)
    assert resumed.total_tokens(2) == 221 + 2 * (2000 + rank)
    resumed.on_train_end(a_trainer(), ON_CPU)
    assert resumed.total_tokens(2) == resumed.total_tokens() == resumed.total_tokens_all == 221 + 4001
    dist.destroy_process_group()


@pytest.mark.slow
def test_tokens_of_the_run_are_the_sum_over_the_ranks_and_a_resume_counts_them_once(tmp_path: Path) -> None:
    mp.spawn(_one_of_two_ranks, args=(str(tmp_path),), nprocs=2)


def test_a_second_fit_of_the_same_object_counts_on() -> None:
    throughput = Throughput(warmup_steps=1)
    train(throughput, 10, 20)
    throughput.load_state_dict(throughput.state_dict())
    train(throughput, 5)
    throughput.on_train_end(a_trainer(), ON_CPU)
    assert throughput.total_tokens(1) == 35


def test_warmup_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup_steps = -1"):
        Throughput(warmup_steps=-1)
