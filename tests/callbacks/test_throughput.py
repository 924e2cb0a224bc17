from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lit_consistency.callbacks import Throughput
from lit_consistency.callbacks.throughput import available_flops, flops_per_token
from tests.runs import fit


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
    matrices = 2 * (24 * 8 + 8 * 8 + 16 * 8 + 8 * 16) + 32 * 8
    assert flops_per_token(model, 10) == 6 * matrices + 12 * 2 * 2 * 4 * 10


def test_the_peak_of_a_cpu_is_not_known() -> None:
    assert available_flops(torch.device("cpu"), None) is None  # type: ignore[arg-type]


def test_warmup_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup_steps = -1"):
        Throughput(warmup_steps=-1)
