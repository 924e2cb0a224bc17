from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from lit_consistency.inference.evaluation_mode import evaluation_mode


def test_random_states_and_modes_are_put_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    model[0].eval()  # a frozen layer that was in evaluation mode stays there
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(3)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with evaluation_mode(model):
        assert not model[1].training
        assert not torch.is_grad_enabled()
        random.random(), np.random.rand(), torch.rand(7)
    assert (model.training, model[0].training, model[1].training) == (True, False, True)
    found = random.random(), np.random.rand(), torch.rand(3)
    assert found[:2] == expected[:2]
    assert torch.equal(found[2], expected[2])
    assert torch.is_grad_enabled()


def test_modes_are_put_back_after_an_error() -> None:
    model = nn.Dropout(0.5)
    try:
        with evaluation_mode(model):
            raise KeyError
    except KeyError:
        pass
    assert model.training
