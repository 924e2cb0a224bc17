from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_consistency.optimizers import Muon, muon
from tests.optimizers.models import follow, one_matrix, random_grads

F32 = torch.float32


def both_ways(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], grads: Any, **options: Any) -> list[Any]:
    """Parameter and momentum after some steps: moved in place, and by way of the update."""
    found = []
    for keeps_update in (True, False):
        monkeypatch.setattr(Muon, "keeps_update", keeps_update)
        parameter, groups = one_matrix(*shape, dtype=grads[0].dtype)
        optimizer = Muon(groups, weight_decay=0.1, **options)
        assert optimizer.workspace.nbytes == 0
        moved = follow(optimizer, parameter, grads)
        assert (optimizer.workspace.nbytes > 0) is keeps_update
        found.append((moved.clone(), optimizer.state[parameter]["momentum_buffer"].clone()))
    return found


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("ns_form", ["direct", "gram"])
@pytest.mark.parametrize("shape", [(264, 300), (300, 264)])
def test_in_place_is_the_same_step(
    shape: tuple[int, int], ns_form: str, nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    grads = random_grads(shape, 3, dtype=torch.float64)
    in_place, expected = both_ways(monkeypatch, shape, grads, ns_form=ns_form, nesterov=nesterov)
    for found, exact in zip(in_place, expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("nesterov", [True, False])
def test_in_place_in_bfloat16_is_the_same_step(nesterov: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    grads = random_grads((264, 300), 2, dtype=F32)
    options = {"ns_form": "direct", "ns_dtype": "bfloat16", "nesterov": nesterov, "lr": 1e-2}
    (found, buffer), (expected, expected_buffer) = both_ways(monkeypatch, (264, 300), grads, **options)
    torch.testing.assert_close(buffer, expected_buffer)
    # updates of root mean square 0.2, of which bfloat16 keeps 8 bits through five steps
    assert float((found - expected).square().mean().sqrt()) < 2 * 1e-2 * 0.2 * 16 * 2**-8


@pytest.mark.parametrize("ns_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_zero_and_tiny_gradients_move_as_they_should(
    scale: float, ns_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grads = [grad * scale for grad in random_grads((260, 264), 2, dtype=F32)]
    in_place, expected = both_ways(monkeypatch, (260, 264), grads, ns_form="direct", ns_dtype=ns_dtype)
    torch.testing.assert_close(in_place[0], expected[0])
    assert in_place[0].isfinite().all()


@pytest.mark.parametrize("options", [{"normuon": True}, {"cautious_decay": True}, {"orthogonalize": False}])
def test_options_that_need_the_update_take_the_other_way(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "move_in_place", lambda *_: pytest.fail("moved in place"))
    parameter, groups = one_matrix(260, 264, dtype=F32)
    start = parameter.detach().clone()
    moved = follow(Muon(groups, ns_dtype="float32", **options), parameter, random_grads((260, 264), 1, dtype=F32))
    assert not torch.equal(moved, start)


def test_a_step_makes_nothing_of_the_size_of_the_matrix() -> None:
    from torch.profiler import ProfilerActivity, profile

    parameter, groups = one_matrix(512, 768, dtype=F32)
    optimizer = Muon(groups, ns_dtype="float32")
    grads = random_grads((512, 768), 2, dtype=F32)
    follow(optimizer, parameter, grads[:1])
    parameter.grad = grads[1]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        optimizer.step()
    events = measured.profiler.kineto_results.events()
    largest = max(event.nbytes() for event in events if event.name() == "[memory]")
    assert largest < parameter.numel() * 4 / 4
