from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lit_consistency.callbacks.exact_resume import ExactResume, random_states, set_random_states


def draw() -> tuple[float, float, float, float]:
    return random.gauss(0, 1), float(np.random.normal()), float(torch.rand(())), random.random()


def test_random_states_survive_a_file_that_holds_no_code(tmp_path: Path) -> None:
    draw()  # leaves half a pair of normal numbers behind in Python's and NumPy's generators
    torch.save(random_states(), tmp_path / "states")
    expected = [draw() for _ in range(3)]
    set_random_states(torch.load(tmp_path / "states", weights_only=True))
    assert [draw() for _ in range(3)] == expected


FIRST = "RUN/checkpoints/step-00000002.ckpt"


@pytest.mark.parametrize(
    ("own", "others_agree", "stops"),
    [
        (FIRST, True, False),
        (FIRST, False, True),
        ("RUN/checkpoints/step-1.ckpt", True, True),
        (None, True, True),
    ],
)
def test_ranks_that_would_go_on_from_different_checkpoints_all_stop(
    own: str | None, others_agree: bool, stops: bool
) -> None:
    """A node that sees a shared folder as it was a minute ago finds an older checkpoint, or none."""
    strategy = SimpleNamespace(
        broadcast=lambda mine: FIRST, reduce_boolean_decision=lambda agrees: agrees and others_agree
    )
    trainer: Any = SimpleNamespace(strategy=strategy, global_rank=1)
    said = f"rank 1 from {own or 'the beginning'}; expected one, in a folder that all nodes share"
    with pytest.raises(ValueError, match=said) if stops else nullcontext():
        ExactResume(checkpoint=own).setup(trainer, trainer, "fit")
