from __future__ import annotations

import torch

from lit_consistency.optimizers.core.workspace import Workspace


def test_a_name_is_the_same_memory_as_large_as_the_largest_tensor_in_it() -> None:
    workspace = Workspace()
    large = workspace.take("a", (4, 6), torch.float32).fill_(1)
    small = workspace.take("a", (3,), torch.bfloat16)
    assert small.data_ptr() == large.data_ptr()
    assert workspace.nbytes == 96
    assert workspace.take("b", (5,), torch.float64).data_ptr() != large.data_ptr()
    assert workspace.take("a", (10, 6), torch.float32).shape == (10, 6)
    assert workspace.nbytes == 240 + 40
