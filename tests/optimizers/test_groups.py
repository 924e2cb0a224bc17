from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lit_consistency.optimizers import Muon, dry_build, format_table, group_table, parameter_groups, roles
from lit_consistency.optimizers.groups import ROLES, blocks
from tests.optimizers.models import FAMILIES, small_gpt, small_lora


def roles_of_groups(groups: list[dict]) -> dict[str, str]:
    return {name: group["role"] for group in groups for name, _ in group["params"]}


def splits(groups: list[dict]) -> dict[str, tuple[int, ...]]:
    return {name: group["split"] for group in groups for name, _ in group["params"] if group["split"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_in_exactly_one_group(family: str) -> None:
    model = small_gpt(family)
    grouped = [name for group in parameter_groups(model) for name, _ in group["params"]]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_are_the_linear_layers_inside_the_blocks(family: str) -> None:
    model = small_gpt(family)
    expected = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".h." in path and not path.endswith("gate")
    }
    assert {name for name, role in roles_of_groups(parameter_groups(model)).items() if role == "hidden"} == expected


def test_roles_of_a_pythia() -> None:
    found = roles_of_groups(parameter_groups(small_gpt("pythia-14m")))
    assert found["transformer.wte.weight"] == "embedding"
    assert found["lm_head.weight"] == "head"
    assert found["transformer.h.0.norm_1.weight"] == "norm"
    assert found["transformer.h.0.norm_1.bias"] == "bias"
    assert found["transformer.h.0.attn.qkv.bias"] == "bias"


def test_a_router_is_a_head_and_an_expert_is_hidden() -> None:
    found = roles_of_groups(parameter_groups(small_gpt("Mixtral-8x7B-v0.1")))
    assert found["transformer.h.0.mlp.gate.weight"] == "head"
    assert found["transformer.h.0.mlp.experts.2.fc_1.weight"] == "hidden"


def test_a_matrix_called_gate_without_experts_is_hidden() -> None:
    model = nn.ModuleDict({"gate": nn.Linear(4, 4, bias=False), "gate_up": nn.Linear(4, 4, bias=False)})
    assert set(roles(model).values()) == {"hidden"}


def test_a_stack_of_expert_matrices_is_hidden() -> None:
    model = nn.Module()
    model.experts = nn.Parameter(torch.zeros(3, 4, 5))
    assert roles(model) == {"experts": "hidden"}


@pytest.mark.parametrize(
    ("family", "split"), [("pythia-14m", (16, 16, 16)), ("Llama-3.2-1B", (16, 8, 8)), ("Gemma-2b", (32, 8, 8))]
)
def test_fused_qkv_is_split_by_query_groups(family: str, split: tuple[int, ...]) -> None:
    assert splits(parameter_groups(small_gpt(family))) == {"transformer.h.0.attn.qkv.weight": split}


def test_qkv_fused_has_no_split() -> None:
    assert splits(parameter_groups(small_gpt(), qkv="fused")) == {}


@pytest.mark.parametrize(
    ("family", "split"), [("pythia-14m", (4,) * 12), ("Llama-3.2-1B", (4,) * 8), ("Gemma-2b", (8,) * 6)]
)
def test_qkv_head_is_one_block_for_each_head(family: str, split: tuple[int, ...]) -> None:
    assert splits(parameter_groups(small_gpt(family), qkv="head")) == {"transformer.h.0.attn.qkv.weight": split}


def test_qkv_head_splits_lora_b_alone_by_head() -> None:
    assert splits(parameter_groups(small_lora(), qkv="head")) == {
        "transformer.h.0.attn.qkv.lora_A": (2, 2),
        "transformer.h.0.attn.qkv.lora_B": (4,) * 6,
    }


def test_lora_groups_are_the_adapters_and_split_where_qkv_is_fused() -> None:
    groups = parameter_groups(small_lora())
    assert {group["role"] for group in groups} == {"adapter"}
    # query and value are adapted, key is not
    assert splits(groups) == {
        "transformer.h.0.attn.qkv.lora_A": (2, 2),
        "transformer.h.0.attn.qkv.lora_B": (16, 8),
    }


def test_one_adapted_block_is_not_split() -> None:
    assert splits(parameter_groups(small_lora(lora_value=False))) == {}


def test_trained_qkv_under_lora_is_split_as_without() -> None:
    model = small_lora()
    model.transformer.h[0].attn.qkv.linear.weight.requires_grad_(True)
    assert splits(parameter_groups(model))["transformer.h.0.attn.qkv.linear.weight"] == (16, 8, 8)


@pytest.mark.parametrize("family", ["Llama-3.2-1B", "Mixtral-8x7B-v0.1"])
def test_roles_of_lora_are_those_of_the_base_under_its_names(family: str) -> None:
    base, lora = roles(small_gpt(family)), roles(small_lora(family, lora_head=True))
    assert {name: role for name, role in lora.items() if "lora_" not in name} == base
    assert {role for name, role in lora.items() if "lora_" in name} == {"adapter"}


def test_tied_weights_are_one_embedding() -> None:
    model = small_gpt()
    model.lm_head.weight = model.transformer.wte.weight
    found = roles_of_groups(parameter_groups(model))
    assert [role for role in found.values() if role in ("embedding", "head")] == ["embedding"]
    assert roles(model)["lm_head.weight"] == roles(model)["transformer.wte.weight"] == "embedding"


@pytest.mark.parametrize("order", [("wte", "lm_head"), ("lm_head", "wte")])
def test_a_tied_weight_is_an_embedding_whichever_comes_first(order: tuple[str, str]) -> None:
    layers = {"wte": nn.Embedding(6, 4), "lm_head": nn.Linear(4, 6, bias=False)}
    layers["lm_head"].weight = layers["wte"].weight
    model = nn.ModuleDict({name: layers[name] for name in order})
    assert roles_of_groups(parameter_groups(model)) == {f"{order[0]}.weight": "embedding"}


def test_frozen_parameters_are_in_no_group() -> None:
    model = small_gpt()
    model.transformer.wte.weight.requires_grad_(False)
    assert "transformer.wte.weight" not in roles_of_groups(parameter_groups(model))
    assert roles(model)["transformer.wte.weight"] == "embedding"


def test_nothing_trainable_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter of the model takes a gradient"):
        parameter_groups(small_gpt().requires_grad_(False))


def test_an_override_reroutes_and_the_first_that_matches_decides() -> None:
    roles = {r"mlp\.gate": "hidden", r"mlp\.": "embedding"}
    found = roles_of_groups(parameter_groups(small_gpt("Mixtral-8x7B-v0.1"), roles=roles))
    assert found["transformer.h.0.mlp.gate.weight"] == "hidden"
    assert found["transformer.h.0.mlp.experts.0.fc_1.weight"] == "embedding"
    assert found["transformer.h.0.attn.proj.weight"] == "hidden"


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"mlp.gatee": "head"}, "roles = 'mlp.gatee': matches no trainable parameter"),
        ({"mlp.(gate": "head"}, r"roles = 'mlp.\(gate': expected a regular expression: missing \)"),
        ({"wte": "vector"}, "roles = 'vector': expected one of hidden, adapter, embedding"),
        ({"wte": "hidden"}, "transformer.wte.weight = hidden: expected embedding or head"),
        ({"lm_head": "hidden"}, "lm_head.weight = hidden: expected embedding or head"),
        ({"norm_1": "hidden"}, "expected 2 or 3 dimensions for hidden"),
    ],
)
def test_an_impossible_override_is_refused(roles: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameter_groups(small_gpt(), roles=roles)


def test_a_parameter_of_four_dimensions_needs_an_override() -> None:
    with pytest.raises(ValueError, match="use roles"):
        parameter_groups(nn.Conv2d(1, 1, 3))
    assert roles_of_groups(parameter_groups(nn.Conv2d(1, 1, 3), roles={"weight": "head"}))["weight"] == "head"


def test_a_fused_matrix_with_other_rows_than_promised_is_refused() -> None:
    model = small_gpt()
    model.config.n_query_groups = 4
    with pytest.raises(ValueError, match=r"attn.qkv.weight has 32 rows: expected 16 \+ 16 \+ 16"):
        parameter_groups(model)


def test_a_fused_matrix_of_unknown_layout_is_refused() -> None:
    model = nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(4, 12)})})
    with pytest.raises(ValueError, match="use qkv = 'fused'"):
        parameter_groups(model)
    assert len(parameter_groups(model, qkv="fused")) == 2


def test_table_counts_every_parameter_and_is_json() -> None:
    model = small_gpt()
    rows = group_table(parameter_groups(model))
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in model.parameters())
    assert json.loads(json.dumps(rows)) == rows
    assert "16 + 8 + 8" in format_table(rows)


def test_table_of_an_optimizer_is_that_of_its_groups() -> None:
    groups = parameter_groups(small_gpt())
    rows = group_table(groups)
    assert group_table(torch.optim.SGD(groups, lr=0.1).param_groups) == rows


def test_blocks_are_views_of_each_matrix_of_a_stack() -> None:
    stack = torch.arange(24.0).view(2, 4, 3)
    found = blocks(stack, (1, 3))
    assert [tuple(block.shape) for block in found] == [(1, 3), (3, 3), (1, 3), (3, 3)]
    for block in found:
        block.zero_()
    assert not stack.any()


def test_a_rehearsal_has_what_every_option_asks_for_and_refuses_a_wrong_value() -> None:
    dry_build(lambda groups: Muon(groups, adapters="paired", role_lr=dict.fromkeys(ROLES, 0.5)))
    with pytest.raises(ValueError, match="^lr = -1: "):
        dry_build(lambda groups: Muon(groups, lr=-1))
