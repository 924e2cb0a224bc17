from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lit_consistency.optimizers import Muon
from lit_consistency.optimizers.orthogonal import choice as ns_choice
from lit_consistency.optimizers.orthogonal.choice import Choice, candidates, choose, orthogonalize
from lit_consistency.optimizers.orthogonal.newton_schulz import newton_schulz
from tests.optimizers.models import follow, one_matrix, random_grads

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64


@pytest.mark.parametrize(
    ("shape", "device", "dtype", "expected"),
    [
        ((4, 64, 64), CPU, F32, ["direct float32"]),
        ((4, 64, 96), CPU, F32, ["gram float32"]),
        ((1, 256, 4096), CPU, F32, ["gram float32"]),
        ((1, 768, 768), CPU, F32, ["direct float32", "direct bfloat16"]),
        ((1, 3072, 768), CPU, F32, ["gram float32", "gram bfloat16"]),
        ((1, 768, 3072), CPU, F64, ["gram float64"]),
        ((12, 768, 768), CUDA, F32, ["direct bfloat16"]),
        ((12, 768, 3072), CUDA, F32, ["direct bfloat16", "gram bfloat16"]),
        ((12, 64, 768), CUDA, F32, ["gram bfloat16"]),
    ],
)
def test_what_is_measured_and_what_follows_a_rule(shape: Any, device: Any, dtype: Any, expected: list[str]) -> None:
    assert [str(choice) for choice in candidates("auto", "auto", torch.Size(shape), device, dtype)] == expected


def test_what_is_asked_for_is_taken() -> None:
    shape = torch.Size((1, 768, 768))
    assert candidates("gram", "bfloat16", shape, CPU, F32) == [Choice("gram", BF16)]
    assert candidates("gram", "bfloat16", shape, CPU, F64) == [Choice("gram", F64)]
    assert candidates("direct", "float32", torch.Size((1, 768, 3072)), CUDA, F32) == [Choice("direct", F32)]


@pytest.mark.parametrize(("seconds", "expected"), [((1.0, 0.5), 1), ((1.0, 0.9), 0), ((1.0, 4.0), 0)])
def test_the_less_exact_must_be_clearly_faster(
    seconds: tuple[float, float], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = dict(zip((F32, BF16), seconds, strict=True))
    monkeypatch.setattr(ns_choice, "seconds", lambda choice, *_: times[choice.dtype])
    choices: dict[str, str] = {}
    found = choose(choices, "auto", "auto", torch.Size((1, 300, 300)), CPU, F32, lambda number, _: number)
    assert found == Choice("direct", (F32, BF16)[expected])
    assert choices == {"cpu 300x300": str(found)}


def test_a_measured_choice_is_resumed_and_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = random_grads((264, 260), 2, dtype=F32)
    monkeypatch.setattr(ns_choice, "fastest", lambda *_: 1)
    parameter, groups = one_matrix(264, 260, dtype=F32)
    optimizer = Muon(groups)
    assert optimizer.choices() == {}
    follow(optimizer, parameter, grads[:1])
    assert optimizer.choices() == {"cpu 264x260": "direct bfloat16"}
    saved, start = copy.deepcopy(optimizer.state_dict()), parameter.detach().clone()
    expected = follow(optimizer, parameter, grads[1:])
    monkeypatch.setattr(ns_choice, "fastest", lambda *_: pytest.fail("measured again"))
    resumed, groups = one_matrix(264, 260, dtype=F32)
    with torch.no_grad():
        resumed.copy_(start)
    again = Muon(groups)
    again.load_state_dict(saved)
    assert torch.equal(follow(again, resumed, grads[1:]), expected)


def test_a_recorded_choice_gives_way_to_what_is_asked_for() -> None:
    choices = {"cpu 300x300": "direct bfloat16"}
    asked: dict[str, Any] = {"shape": torch.Size((1, 300, 300)), "device": CPU, "agree": lambda number, _: number}
    assert choose(choices, "auto", "auto", dtype=F32, **asked) == Choice("direct", BF16)
    assert choose(choices, "gram", "float32", dtype=F32, **asked) == Choice("gram", F32)
    assert choose(choices, "gram", "float32", dtype=F64, **asked) == Choice("gram", F64)
    assert choices == {"cpu 300x300": "gram float64"}


def test_measuring_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert ns_choice.fastest([Choice("direct", F32), Choice("direct", BF16)], torch.Size((1, 32, 32)), CPU) in (0, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(3, 20, 30), (2, 300, 280), (1, 12, 12)])
def test_a_stack_is_orthogonalized_as_its_matrices(shape: tuple[int, ...]) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = orthogonalize(stack, Choice("direct", F64), ns_steps=5, ns_coefficients="polar_express")
    torch.testing.assert_close(found, torch.stack([newton_schulz(matrix) for matrix in stack]))


def test_one_graph_holds_the_whole_of_newton_schulz() -> None:
    """What CUDA compiles, here without generating code: no part of it falls back to Python, and none runs twice."""
    counter = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        counter.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(newton_schulz, backend=backend, fullgraph=True, dynamic=False)
    stack = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    for form in ("direct", "gram"):
        for scale in (1.0, 3.0):
            found = compiled(stack * scale, form=form, dtype=BF16)
            assert torch.equal(found, newton_schulz(stack * scale, form=form, dtype=BF16))
    assert len(counter) == 2
