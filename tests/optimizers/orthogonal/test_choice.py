from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_consistency.optimizers import Muon, parameter_groups
from lit_consistency.optimizers.core.workspace import Workspace
from lit_consistency.optimizers.orthogonal import choice as rules
from lit_consistency.optimizers.orthogonal.choice import Choice, choose, multiplies_bfloat16
from lit_consistency.optimizers.orthogonal.orthogonalizer import newton_schulz, polar_factors
from tests.optimizers.models import follow, one_matrix, random_grads, small_lora

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64


@pytest.fixture(autouse=True)
def afresh() -> Any:
    """What was asked of the hardware before is forgotten, before and after a test that changes it."""
    for function in (choose, multiplies_bfloat16):
        function.cache_clear()
    yield
    for function in (choose, multiplies_bfloat16):
        function.cache_clear()


@pytest.mark.parametrize(
    ("shape", "device", "dtype", "native", "expected"),
    [
        ((64, 64), CPU, F32, True, ("direct", F32)),
        ((64, 96), CPU, F32, True, ("gram", F32)),
        ((256, 4096), CPU, F32, True, ("gram", F32)),
        ((768, 768), CPU, F32, False, ("direct", F32)),
        ((768, 768), CPU, F32, True, ("direct", BF16)),
        ((3072, 768), CPU, F32, True, ("gram", BF16)),
        ((768, 3072), CPU, F64, True, ("gram", F64)),
        ((768, 768), CUDA, F32, True, ("direct", BF16)),
        ((768, 1536), CUDA, F32, True, ("direct", BF16)),
        ((768, 1728), CUDA, F32, True, ("gram", BF16)),
        ((64, 96), CUDA, F32, True, ("gram", BF16)),
        ((768, 1536), CUDA, F32, False, ("gram", F32)),
    ],
)
def test_form_and_precision_follow_from_shape_and_hardware(
    shape: Any, device: Any, dtype: Any, native: bool, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "multiplies_bfloat16", lambda _: native)
    assert choose("auto", "auto", *shape, device, dtype) == expected
    assert choose("auto", "auto", *shape[::-1], device, dtype) == expected


def test_what_is_asked_for_is_taken() -> None:
    assert choose("gram", "bfloat16", 768, 768, CPU, F32) == Choice("gram", BF16)
    assert choose("gram", "bfloat16", 768, 768, CPU, F64) == Choice("gram", F64)
    assert choose("direct", "float32", 768, 3072, CUDA, F32) == Choice("direct", F32)


@pytest.mark.parametrize(
    ("isa", "native"),
    [(None, True), ("DEFAULT", True), ("AVX512_CORE_AMX", True), ("AVX512_CORE_BF16", False), ("AVX2", False)],
)
def test_a_cpu_multiplies_bfloat16_with_amx_that_onednn_may_use(
    isa: str | None, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if isa is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert multiplies_bfloat16(CPU) is native
    multiplies_bfloat16.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not multiplies_bfloat16(CPU)


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cuda_multiplies_bfloat16_from_ampere(
    capability: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert multiplies_bfloat16(CUDA) is native


def test_the_record_says_what_every_block_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step already, a row for a shape; what is not orthogonalized has none."""
    monkeypatch.setattr(rules, "multiplies_bfloat16", lambda _: True)
    _, groups = one_matrix(1024, 300, dtype=BF16, split=(512, 256, 256))
    rows = [
        {"device": "cpu", "shape": [512, 300], "form": "gram", "dtype": "bfloat16"},
        {"device": "cpu", "shape": [256, 300], "form": "direct", "dtype": "float32"},
    ]
    optimizer = Muon(groups)
    assert optimizer.choices == rows
    assert optimizer.record() == {"newton_schulz": rows}
    assert Muon(groups, ns_form="direct", ns_dtype="float32").choices == [
        row | {"form": "direct", "dtype": "float32"} for row in rows
    ]
    assert Muon(groups, orthogonalize=False).choices == []
    lora = parameter_groups(small_lora())
    assert Muon(lora).choices
    assert Muon(lora, adapters="paired").choices == []


@pytest.mark.parametrize(("native", "dtype"), [(True, BF16), (False, F32)])
def test_a_step_takes_what_the_rule_says(native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "multiplies_bfloat16", lambda _: native)
    (grad,) = random_grads((264, 260), 1, dtype=F32)
    parameter, groups = one_matrix(264, 260, dtype=F32)
    start = parameter.detach().clone()
    moved = start - follow(Muon(groups, lr=1.0, lr_scale="original"), parameter, [grad])
    expected = newton_schulz(1.95 * grad, dtype=dtype) * (264 / 260) ** 0.5  # nesterov's first direction
    torch.testing.assert_close(moved, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(3, 20, 30), (2, 300, 280), (1, 12, 12)])
def test_a_stack_is_orthogonalized_as_its_matrices(shape: tuple[int, ...]) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    options: dict[str, Any] = {"ns_steps": 5, "ns_coefficients": "polar_express", "workspace": Workspace()}
    result = polar_factors(stack, Choice("direct", F64), **options)
    torch.testing.assert_close(result, torch.stack([newton_schulz(matrix) for matrix in stack]))


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
            result = compiled(stack * scale, form=form, dtype=BF16)
            assert torch.equal(result, newton_schulz(stack * scale, form=form, dtype=BF16))
    assert len(counter) == 2
