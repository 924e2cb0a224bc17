"""DoRA and rsLoRA against what their papers write, and as LoRA in everything else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from litgpt.lora import merge_lora_weights
from torch import Tensor

from lit_consistency.distributed.dtensors import KeptShards
from lit_consistency.methods import LoRA, LoRAGPT
from lit_consistency.methods.dora import DoRALinear, DoRAQKVLinear, adapted_layers, lora_update
from lit_consistency.model import GPT, init_weights
from lit_consistency.optimizers import Muon, parameter_groups
from tests.methods.small import OPTIMIZERS, optimizer_of, small_model, train
from tests.methods.test_lora import EVERYTHING, FAMILIES, ROUNDING, base_and_adapted, small_config, some_tokens
from tests.reference.dora import dora_qkv_weight, dora_weight

DORA = {**EVERYTHING, "dora": True}


def as_if_trained(model: LoRAGPT) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.2)
            if "lora_magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", FAMILIES)
def test_at_the_start_it_is_the_base_to_the_last_bit(name: str, precision: torch.dtype) -> None:
    base, adapted = base_and_adapted(LoRA(**DORA), name)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        assert torch.equal(adapted(some_tokens()), base(some_tokens()))
    assert any("lora_magnitude" in key for key, parameter in adapted.named_parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("targets", [{}, {"query": False, "mlp": False}], ids=["all", "some"])
def test_merged_logits_equal_unmerged(name: str, targets: dict[str, bool]) -> None:
    method = LoRA(r=3, alpha=7, **{**DORA, **targets})
    base, adapted = (model.double() for model in base_and_adapted(method, name))
    as_if_trained(adapted)
    merged = GPT(base.config).double()
    merged.load_state_dict(method.merged_state(adapted), strict=True)
    logits = adapted(some_tokens())
    closeness: dict[str, float] = {"rtol": 0, "atol": ROUNDING * float(logits.detach().abs().max())}
    torch.testing.assert_close(merged(some_tokens()), logits, **closeness)
    assert (logits - base(some_tokens())).abs().max() > 0.1
    for name_, change, weight in method.changes(adapted, KeptShards({})):
        torch.testing.assert_close(weight + change, merged.state_dict()[name_], rtol=1e-12, atol=1e-12)
    merge_lora_weights(adapted)  # LitGPT's own
    torch.testing.assert_close(adapted(some_tokens()), logits, **closeness)


def layer_of(kind: type[DoRALinear], **options: Any) -> DoRALinear:
    """A trained layer of a model in float64; its bias is random."""
    _, adapted = base_and_adapted(LoRA(r=3, alpha=7, **{**DORA, **options}), "pythia-14m", n_query_groups=4)
    adapted.double()
    as_if_trained(adapted)
    layers = [layer for _, layer in adapted_layers(adapted) if type(layer) is kind]
    return next(layer for layer in layers if isinstance(layer, kind) and layer.linear.bias is not None)


def test_output_and_gradients_are_those_of_the_paper() -> None:
    layer = layer_of(DoRALinear)
    x = torch.randn(5, layer.linear.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    trained = [layer.lora_A, layer.lora_B, layer.lora_magnitude]
    weight = dora_weight(layer.linear.weight, *trained, scale=7 / 3, detach=True)
    expected = x @ weight.T + layer.linear.bias
    output = layer(x)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    towards = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    slow, own = (torch.autograd.grad((y * towards).sum(), trained) for y in (expected, output))
    for one, other in zip(own, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("adapted", [(True, True, True), (True, False, True), (False, True, False)])
def test_blocks_of_the_fused_matrix_are_those_of_the_paper(adapted: tuple[bool, bool, bool]) -> None:
    layer = layer_of(DoRAQKVLinear, **dict(zip(("query", "key", "value"), adapted, strict=True)))
    assert isinstance(layer, DoRAQKVLinear)
    rows = [layer.head_size * n for n in (layer.n_head, layer.n_query_groups, layer.n_query_groups)]
    own = [n for n, chosen in zip(rows, adapted, strict=True) if chosen]
    parts = iter(zip(layer.lora_A.split(3), layer.lora_B.split(own), layer.lora_magnitude.split(own), strict=True))
    weight = dora_qkv_weight(
        layer.linear.weight, rows, [next(parts) if chosen else None for chosen in adapted], scale=7 / 3
    )
    x = torch.randn(5, layer.linear.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(layer(x), x @ weight.T + layer.linear.bias, rtol=1e-12, atol=1e-12)


def test_between_is_between_the_weights_and_leaves_the_end_as_it_is() -> None:
    method = LoRA(r=3, **DORA)
    base, adapted = base_and_adapted(method, "Llama-3.2-1B")
    as_if_trained(adapted)
    start = {name: value.clone() for name, value in base.state_dict().items()}
    end, logits = method.merged_state(adapted), adapted(some_tokens())
    for share in (0.25, 1.5, -1.0):
        base.load_state_dict({name: start[name] + share * (end[name] - start[name]) for name in start})
        with method.between(adapted, KeptShards({}), share):
            torch.testing.assert_close(adapted(some_tokens()), base(some_tokens()), rtol=1e-4, atol=1e-4)
    assert torch.equal(adapted(some_tokens()), logits)


def test_drawn_weights_have_magnitudes_of_their_own() -> None:
    config = small_config("pythia-14m")
    adapted, plain = LoRA(**DORA).build(config), GPT(config)
    for model in (adapted, plain):
        torch.manual_seed(5)
        init_weights(model, config)
    assert torch.equal(adapted(some_tokens()), plain(some_tokens()))


def test_adapters_that_are_given_are_kept() -> None:
    method = LoRA(r=3, **DORA)
    _, adapted = base_and_adapted(method, "pythia-14m")
    as_if_trained(adapted)
    again = method.build(small_config("pythia-14m"))
    method.load(again, adapted.state_dict())
    assert torch.equal(again(some_tokens()), adapted(some_tokens()))


@pytest.mark.parametrize("r", [1, 4, 9])
def test_rslora_divides_by_the_root_of_the_rank(r: int) -> None:
    """Written out: alpha / sqrt(r) B A, equation 4 of arXiv 2312.03732."""
    method = LoRA(r=r, alpha=5, rslora=True)
    _, adapted = base_and_adapted(method, "pythia-14m")
    as_if_trained(adapted)
    layer = adapted.transformer.h[0].mlp.fc
    columns: list[Tensor] = [
        5 / math.sqrt(r) * sum(layer.lora_B[:, k] * layer.lora_A[k, j] for k in range(r))
        for j in range(layer.linear.in_features)
    ]
    expected = torch.stack(columns, dim=1)
    torch.testing.assert_close(lora_update(layer, layer.lora_A, layer.lora_B), expected, rtol=1e-5, atol=1e-6)
    x = torch.randn(3, layer.linear.in_features)
    torch.testing.assert_close(layer(x), layer.linear(x) + x @ expected.T, rtol=1e-4, atol=1e-4)
    assert (method.name, LoRA(rslora=True, dora=True).name) == ("rslora", "rsdora")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves_factors_and_magnitudes_and_nothing_else(name: str) -> None:
    method = LoRA(r=2, dora=True)
    model = small_model(method)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(method, model, optimizer_of(name, lr=0.01))
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if "lora_" in key}
    assert {name.rpartition(".")[2] for name in moved} == {"lora_A", "lora_B", "lora_magnitude"}


def test_pairs_of_muon_move_as_without_magnitudes_and_these_by_adamw() -> None:
    """Same gradients: magnitudes are vectors, which decay and Newton-Schulz leave alone."""
    moved = {}
    for dora in (False, True):
        model = small_model(LoRA(r=2, dora=dora), dtype=torch.float64)
        groups = parameter_groups(model)
        roles = {name.rpartition(".")[2]: group["role"] for group in groups for name, _ in group["params"]}
        assert roles == {"lora_A": "adapter", "lora_B": "adapter"} | ({"lora_magnitude": "norm"} if dora else {})
        optimizer = Muon(groups, lr=0.01, weight_decay=0.1, adamw_weight_decay=0.1, adapters="paired")
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                seed = sum(map(ord, name))
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)).double()
        optimizer.step()
        moved[dora] = {name: p.detach() - before[name] for name, p in model.named_parameters() if p.requires_grad}
    factors = {name: change for name, change in moved[True].items() if "lora_magnitude" not in name}
    assert factors.keys() == moved[False].keys()
    assert all(torch.equal(change, moved[False][name]) for name, change in factors.items())
    for name in moved[True].keys() - factors.keys():
        # the first step of Adam is lr, against the sign of the gradient
        torch.testing.assert_close(moved[True][name].abs(), torch.full_like(moved[True][name], 0.01), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match=r"lora_magnitude of role adapter has shape \[48\]: expected a matrix"):
        Muon(
            parameter_groups(small_model(LoRA(r=2, dora=True)), roles={"lora_magnitude": "adapter"}), adapters="paired"
        )
