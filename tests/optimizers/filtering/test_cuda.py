"""What surrounds MoFO's kernels, and the kernels themselves by Triton's interpreter; see ``interpreted_kernels.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_consistency.optimizers import MoFO
from lit_consistency.optimizers.core.rounding import seed_of
from lit_consistency.optimizers.filtering import cuda
from tests.optimizers.models import follow, one_matrix, random_grads


@pytest.mark.slow
def test_the_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    path = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", str(path)]
    result = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stdout[-4000:]


def test_seeds_for_many_are_those_for_one() -> None:
    digests = torch.tensor([cuda._digest(f"{seed}/w{seed}/") for seed in range(50)])
    for number in (1, 9, 10, 12345):
        assert cuda._seeds(digests, number).tolist() == [seed_of(seed, f"w{seed}", number) for seed in range(50)]


@pytest.mark.parametrize("selection", ["sampled", "exact"])
def test_where_the_kernels_do_not_run_the_passes_do(
    selection: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> Any:
        raise ImportError("no Triton")

    def steps(devices: tuple[str, ...]) -> torch.Tensor:
        monkeypatch.setattr(cuda, "DEVICES", devices)
        parameter, groups = one_matrix(40, 50, dtype=torch.float32)
        grads = random_grads((40, 50), 3, dtype=torch.float32)
        return follow(MoFO(groups, selection=selection, lr=0.1), parameter, grads)

    monkeypatch.setattr(cuda, "_kernels", fails)
    assert torch.equal(steps(("cpu",)), steps(()))
    assert [record.message.count("no Triton") for record in caplog.records] == [1]
    parameter, groups = one_matrix(40, 50, dtype=torch.float32)
    monkeypatch.setattr(cuda, "DEVICES", ("cpu",))
    with pytest.raises(RuntimeError, match="compile = 'always': MoFO's kernels do not run"):
        follow(MoFO(groups, selection=selection, compile="always"), parameter, [torch.ones(40, 50)])
