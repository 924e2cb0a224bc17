"""Copies of optimizers, with the model that they move."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from lit_consistency.optimizers.contract import run
from tests.optimizers.models import small_gpt
from tests.optimizers.test_contract import build, every_variant


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["copy", "pickle"])
@every_variant
def test_a_copy_moves_as_the_optimizer_does(name: str, way: str, dtype: torch.dtype) -> None:
    model = small_gpt().to(dtype)
    optimizer = build(name, model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    run(optimizer, model, range(3))
    pair = (model, optimizer)
    other_model, other = copy.deepcopy(pair) if way == "copy" else pickle.loads(pickle.dumps(pair))
    expected = run(optimizer, model, range(3, 6))
    found = run(other, other_model, range(3, 6))
    assert all(torch.equal(found[key], value) for key, value in expected.items())
