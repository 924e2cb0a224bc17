from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from lit_consistency.callbacks.exact_resume import random_states, set_random_states


def draw() -> tuple[float, float, float, float]:
    return random.gauss(0, 1), float(np.random.normal()), float(torch.rand(())), random.random()


def test_random_states_survive_a_file_that_holds_no_code(tmp_path: Path) -> None:
    draw()  # leaves half a pair of normal numbers behind in Python's and NumPy's generators
    torch.save(random_states(), tmp_path / "states")
    expected = [draw() for _ in range(3)]
    set_random_states(torch.load(tmp_path / "states", weights_only=True))
    assert [draw() for _ in range(3)] == expected
