"""Half finetuning: what is frozen stays bit for bit, whatever the optimizer; what is trained moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_consistency.methods import HFT, Full
from lit_consistency.model import model_config
from tests.methods.small import FAMILIES, OPTIMIZERS, optimizer_of, small_model, train
from tests.runs import finished, fit, weights

DECAY = {
    "adamw": {"weight_decay": 0.3},
    "mofo": {"weight_decay": 0.3, "decay_unselected": True},
    "muon": {"weight_decay": 0.3, "adamw_weight_decay": 0.3},
    "filtered_muon": {"weight_decay": 0.3, "adamw_weight_decay": 0.3},
    "sgd": {"weight_decay": 0.3},
    "lion": {"weight_decay": 0.3},
    "signum": {"weight_decay": 0.3},
}


def blocks_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every matrix and bias of the layers by name, a fused one cut in three; written without the code under test."""
    found = {}
    config: Any = model.config
    for name, parameter in model.named_parameters():
        if ".attn.qkv." in name:
            q, kv = config.n_head * config.head_size, config.n_query_groups * config.head_size
            value = parameter.detach()
            cut = {"query": value[:q], "key": value[q : q + kv], "value": value[q + kv :]}
            found |= {name.replace("qkv", part): rows.clone() for part, rows in cut.items()}
        else:
            found[name] = parameter.detach().clone()
    return found


def moved(method: HFT, family: str, optimizer: str, **options: Any) -> set[str]:
    """Names of the blocks of which a coordinate changed."""
    model = small_model(method, family, options.pop("dtype", torch.float32))
    before = blocks_of(model)
    qkv = options.pop("qkv", "split")
    train(method, model, optimizer_of(optimizer, **options), qkv=qkv)
    return {name for name, value in blocks_of(model).items() if not torch.equal(value, before[name])}


def expected_matrices(layer: int, family: str) -> set[str]:
    """What alternating trains, by hand: value, projection and the end of the MLP in even layers, the rest in odd."""
    mlp = {"pythia-14m": (["proj"], ["fc"])}.get(family, (["proj"], ["fc_1", "fc_2"]))[layer % 2]
    attention = (["value", "proj"], ["query", "key"])[layer % 2]
    parts = ["weight", "bias"] if family == "pythia-14m" else ["weight"]
    experts = [f"mlp.experts.{i}" for i in range(3)] if family.startswith("Mixtral") else ["mlp"]
    names = [f"attn.{name}" for name in attention] + [f"{mlp_path}.{name}" for mlp_path in experts for name in mlp]
    return {f"transformer.h.{layer}.{name}.{part}" for name in names for part in parts}


def is_matrix(name: str) -> bool:
    return (".attn." in name or ".mlp." in name) and ".norm" not in name and ".gate." not in name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", ["pythia-14m", "Llama-3.2-1B"])
def test_frozen_matrices_stay_and_all_others_move(family: str, optimizer: str) -> None:
    assert DECAY.keys() == set(OPTIMIZERS)
    found = moved(HFT(), family, optimizer, **DECAY[optimizer])
    expected = expected_matrices(0, family) | expected_matrices(1, family)
    assert {name for name in found if is_matrix(name)} == expected
    assert {"lm_head.weight", "transformer.wte.weight", "transformer.h.0.norm_1.weight"} <= found


@pytest.mark.parametrize("family", ["Qwen3-0.6B", "Mixtral-8x7B-v0.1"])
def test_every_expert_is_an_mlp_and_routers_and_norms_are_trained(family: str) -> None:
    found = moved(HFT(), family, "adamw", lr=1e-2)
    assert {name for name in found if is_matrix(name)} == expected_matrices(0, family) | expected_matrices(1, family)
    rest = {name for name in blocks_of(small_model(HFT(), family)) if not is_matrix(name)}
    assert rest <= found


@pytest.mark.parametrize("optimizer", ["muon", "mofo"])
def test_an_undivided_fused_matrix_keeps_its_frozen_rows_too(optimizer: str) -> None:
    found = moved(HFT(), "Llama-3.2-1B", optimizer, qkv="fused", **DECAY[optimizer])
    expected = expected_matrices(0, "Llama-3.2-1B") | expected_matrices(1, "Llama-3.2-1B")
    assert {name for name in found if is_matrix(name)} == expected


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_master_copies_of_bfloat16_keep_the_frozen_rows(optimizer: str) -> None:
    method = HFT()
    model = small_model(method, dtype=torch.bfloat16)
    before = blocks_of(model)
    trained = train(method, model, optimizer_of(optimizer, **DECAY[optimizer]))
    after = blocks_of(model)
    assert torch.equal(before["transformer.h.0.attn.query.weight"], after["transformer.h.0.attn.query.weight"])
    qkv: Any = model.get_parameter("transformer.h.0.attn.qkv.weight")
    master = trained.state[qkv]["master"]
    assert torch.equal(master[:16], before["transformer.h.0.attn.query.weight"].float())
    assert not torch.equal(master[32:], before["transformer.h.0.attn.value.weight"].float())


def test_the_gradient_of_frozen_rows_is_not_seen() -> None:
    """What clipping measures and Muon orthogonalizes is the trained part alone."""
    method = HFT()
    model = small_model(method)
    method.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model(torch.arange(8)[None]).square().sum().backward()
    gradient = model.get_parameter("transformer.h.0.attn.qkv.weight").grad
    assert gradient is not None
    value = gradient[32:].clone()
    method.before_step()
    assert gradient[:32].count_nonzero() == 0
    assert torch.equal(gradient[32:], value)
    assert value.count_nonzero() > 0


@pytest.mark.parametrize("options", [{}, {"selection": "random", "seed": 3}], ids=["alternating", "random"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_complement_trains_exactly_the_other_matrices(family: str, options: dict[str, Any]) -> None:
    model = small_model(HFT(), family)
    one, other = (HFT(**options, complement=c).frozen_rows(model) for c in (False, True))
    for name in one:
        if is_matrix(name):
            assert torch.equal(one[name], ~other[name]), name
        else:
            assert not (one[name] | other[name]).any(), name


def test_the_random_half_is_two_of_four_by_the_seed() -> None:
    chosen = {
        seed: HFT(selection="random", seed=seed)._frozen(0, "attn", ("q", "k", "v", "proj")) for seed in range(40)
    }
    assert {len(names) for names in chosen.values()} == {2}
    assert len({frozenset(names) for names in chosen.values()}) == 6
    again = HFT(selection="random", seed=7)._frozen(0, "attn", ("q", "k", "v", "proj"))
    assert again == chosen[7]


@pytest.mark.parametrize("selection", ["alternating", "random"])
def test_of_three_matrices_two_and_one_are_frozen_in_turn(selection: Any) -> None:
    method = HFT(selection=selection)
    assert [len(method._frozen(layer, "mlp", ("fc_1", "fc_2", "proj"))) for layer in range(4)] == [2, 1, 2, 1]


def test_what_is_not_in_the_layers_is_frozen_on_demand() -> None:
    method = HFT(embedding=False, head=False, norms=False)
    model = small_model(method)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(is_matrix(name) for name in trained)


def test_the_trained_share_counts_rows() -> None:
    """By hand, one Llama layer of 16: attention 256 + 128 + 128 + 256, MLP 3 x 512; embedding and head 1024 each."""
    method = HFT(norms=False)
    model = small_model(method, "Llama-3.2-1B")
    norms, layer = 5 * 16, 256 + 128 + 128 + 256 + 3 * 512
    trained = 2 * 64 * 16 + (128 + 256 + 512) + (256 + 128 + 2 * 512)
    assert method.trained_share(model) == trained / (2 * 64 * 16 + 2 * layer + norms)
    full = Full()
    assert full.trained_share(small_model(full)) == 1.0


def test_what_it_cannot_halve_is_refused() -> None:
    with pytest.raises(ValueError, match="selection = 'odd': expected one of alternating, random"):
        HFT(selection="odd")  # type: ignore[arg-type]
    config = model_config("pythia-14m", None, {"n_layer": 1, "n_embd": 32}, None)
    config.latent_attention = {"q_lora_rank": 4}
    with pytest.raises(ValueError, match="method = HFT with latent_attention"):
        HFT().build(config)


def test_a_run_keeps_the_frozen_half_of_its_base(tmp_path: Path) -> None:
    base = finished(tmp_path / "base", optimizer="muon") / "model"
    cli = fit(tmp_path / "hft", "--model.method=lit_consistency.methods.HFT", base=base, optimizer="muon")
    before, after = weights(base), weights(tmp_path / "hft" / "run" / "model")
    name = "transformer.h.0.attn.qkv.weight"
    assert torch.equal(before[name][:32], after[name][:32])
    assert not torch.equal(before[name][32:], after[name][32:])
    assert torch.equal(before["transformer.h.0.mlp.fc.weight"], after["transformer.h.0.mlp.fc.weight"])
    assert cli.model.method.trained_share(cli.model.gpt) < 0.9
