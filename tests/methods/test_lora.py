import dataclasses

import litgpt.lora
import pytest
import torch
from litgpt.config import Config
from litgpt.lora import LoRALinear

from lit_consistency.distributed.dtensors import KeptShards
from lit_consistency.methods import LoRA, LoRAGPT
from lit_consistency.methods.lora import lora_update
from lit_consistency.model import GPT, model_config

# of the logits: LitGPT takes the softmax of soft-capped scores in float32 whatever the model is
ROUNDING = 2e-6

FAMILIES = ["pythia-14m", "Llama-3.2-1B", "Qwen3-0.6B", "Mixtral-8x7B-v0.1", "Gemma-2-2b"]
EVERYTHING = {"query": True, "key": True, "value": True, "projection": True, "mlp": True, "head": True}
SMALL = {"n_layer": 1, "n_embd": 32, "n_head": 4, "n_query_groups": 2, "vocab_size": 64, "block_size": 32}


def small_config(name: str, **overrides: object) -> Config:
    experts = {"n_expert": 4, "n_expert_per_token": 2} if name.startswith("Mixtral") else {}
    return model_config(name, None, {**SMALL, **experts, **overrides}, None)


def base_and_adapted(method: LoRA, name: str, **overrides: object) -> tuple[GPT, LoRAGPT]:
    """A base with weights of size 0.2, and the LoRA model on it, its adapters as they start."""
    torch.manual_seed(0)
    base = GPT(small_config(name, **overrides))
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    adapted = method.build(base.config)
    method.load(adapted, base.state_dict())
    method.prepare(adapted)
    return base, adapted


def as_if_trained(model: LoRAGPT) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.2)


def some_tokens() -> torch.Tensor:
    return torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_at_the_start_it_is_the_base(name: str) -> None:
    base, adapted = base_and_adapted(LoRA(**EVERYTHING), name)
    assert torch.equal(adapted(some_tokens()), base(some_tokens()))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "targets",
    [EVERYTHING, {**EVERYTHING, "key": False}, {**EVERYTHING, "query": False, "value": False, "mlp": False}],
    ids=["all", "without-key", "key-only"],
)
def test_merged_logits_equal_unmerged(name: str, targets: dict[str, bool]) -> None:
    method = LoRA(r=3, alpha=7, **targets)
    base, adapted = (model.double() for model in base_and_adapted(method, name))
    as_if_trained(adapted)
    before = {key: value.clone() for key, value in adapted.state_dict().items()}
    merged = GPT(base.config).double()
    merged.load_state_dict(method.merged_state(adapted), strict=True)
    logits = adapted(some_tokens())
    torch.testing.assert_close(
        merged(some_tokens()), logits, rtol=0, atol=ROUNDING * float(logits.detach().abs().max())
    )
    assert (logits - base(some_tokens())).abs().max() > 0.1
    assert all(torch.equal(before[key], value) for key, value in adapted.state_dict().items())


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("targets", [(True, True, True), (True, False, True), (False, True, False)])
def test_the_update_is_that_of_litgpt(groups: int, targets: tuple[bool, bool, bool]) -> None:
    chosen = dict(zip(("query", "key", "value"), targets, strict=True))
    _, adapted = base_and_adapted(LoRA(r=3, **{**EVERYTHING, **chosen}), "Llama-3.2-1B", n_query_groups=groups)
    as_if_trained(adapted)
    layers = [module for module in adapted.modules() if isinstance(module, LoRALinear)]
    assert len(layers) == 6
    for layer in layers:
        update = lora_update(layer, layer.lora_A, layer.lora_B)
        torch.testing.assert_close(update, layer.get_lora_AB(), rtol=1e-6, atol=1e-6)


def test_only_adapters_are_trained_and_named_so() -> None:
    _, adapted = base_and_adapted(LoRA(r=2), "pythia-14m")
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in adapted.named_parameters() if "lora_" in name}
    adapted(some_tokens()).sum().backward()
    assert {name for name, parameter in adapted.named_parameters() if parameter.grad is not None} == trained


def test_only_the_chosen_matrices_are_adapted() -> None:
    off = dict.fromkeys(EVERYTHING, False)
    expected = {"query": "attn.qkv", "key": "attn.qkv", "value": "attn.qkv", "projection": "attn.proj", "mlp": "mlp.fc"}
    for target, place in {**expected, "head": "lm_head"}.items():
        _, adapted = base_and_adapted(LoRA(r=2, **{**off, target: True}), "pythia-14m", n_query_groups=4)
        names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
        assert any(place in name for name in names)
        assert len(names) == (4 if target == "mlp" else 2)


def test_documents_do_not_cross_under_lora() -> None:
    _, adapted = base_and_adapted(LoRA(**EVERYTHING), "Llama-3.2-1B")
    as_if_trained(adapted)
    tokens = some_tokens()
    documents = torch.zeros_like(tokens)
    documents[:, 12:] = 1
    positions = torch.cat([torch.arange(12), torch.arange(8)]).expand_as(tokens)
    packed = adapted(tokens, positions=positions, documents=documents)
    torch.testing.assert_close(packed[:, 12:], adapted(tokens[:, 12:]), rtol=1e-5, atol=1e-5)


def test_what_needs_no_merging_is_not_copied() -> None:
    method = LoRA(mlp=False)
    _, adapted = base_and_adapted(method, "pythia-14m")
    merged = method.merged_state(adapted)
    assert merged["transformer.wte.weight"].data_ptr() == adapted.transformer.wte.weight.data_ptr()
    assert merged["lm_head.weight"].data_ptr() == adapted.lm_head.linear.weight.data_ptr()
    mlp = adapted.transformer.h[0].mlp
    assert merged["transformer.h.0.mlp.fc.weight"].data_ptr() == mlp.fc.linear.weight.data_ptr()
    assert not any(value.requires_grad for value in merged.values())


def test_changes_are_what_merging_adds() -> None:
    method = LoRA(r=3, key=False)
    base, adapted = base_and_adapted(method, "Llama-3.2-1B")
    start = KeptShards({name: value for name, value in adapted.named_parameters() if value.requires_grad})
    as_if_trained(adapted)
    merged, before = method.merged_state(adapted), base.state_dict()
    changed = {name for name in before if not torch.equal(merged[name], before[name])}
    changes = method.changes(adapted, start)
    assert iter(changes) is changes, "one at a time"
    for name, change, weight in changes:
        changed.remove(name)
        torch.testing.assert_close(change, merged[name] - before[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(weight, before[name])
        assert not change.requires_grad
    assert not changed


def test_a_half_precision_base_keeps_its_dtype_and_the_update_its_digits() -> None:
    method = LoRA(r=4)
    _, adapted = base_and_adapted(method, "pythia-14m")
    as_if_trained(adapted)
    exact = method.merged_state(adapted)
    weights = {key: value if "lora_" in key else value.bfloat16() for key, value in adapted.state_dict().items()}
    merged = method.merged_state(adapted, weights)
    assert {value.dtype for value in merged.values()} == {torch.bfloat16}
    name = "transformer.h.0.mlp.fc.weight"
    update = exact[name] - adapted.transformer.h[0].mlp.fc.linear.weight
    base = weights["transformer.h.0.mlp.fc.linear.weight"].float()
    # rounding once: half a unit in the last of bfloat16's 8 binary digits
    assert ((merged[name].float() - (base + update)).abs() <= 2.0**-8 * (base + update).abs() + 1e-7).all()


def test_settings_are_those_of_the_method() -> None:
    config = dataclasses.asdict(small_config("pythia-14m"))
    built = LoRA(r=5, alpha=2.5, dropout=0.25, head=True).build(litgpt.lora.Config(**config, lora_r=64)).config
    assert (built.lora_r, built.lora_alpha, built.lora_dropout, built.lora_head) == (5, 2.5, 0.25, True)
    assert LoRA().name == "lora"
    assert isinstance(LoRA().build(small_config("pythia-14m")).config, litgpt.lora.Config)


def test_missing_or_unexpected_weights_are_named() -> None:
    method = LoRA()
    base, adapted = base_and_adapted(method, "pythia-14m")
    method.load(adapted, adapted.state_dict())
    weights = dict(base.state_dict())
    with pytest.raises(ValueError, match="unexpected transformer.h.7.norm_1.bias"):
        method.load(adapted, {**weights, "transformer.h.7.norm_1.bias": torch.zeros(32)})
    with pytest.raises(ValueError, match=r"transformer.h.0.mlp.fc.weight: expected \(128, 32\), found \(3, 3\)"):
        method.load(adapted, {**weights, "transformer.h.0.mlp.fc.weight": torch.zeros(3, 3)})
    del weights["transformer.h.0.attn.qkv.weight"]
    with pytest.raises(ValueError, match="missing transformer.h.0.attn.qkv.linear.weight"):
        method.load(adapted, weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r = 0: expected at least 1"),
        ({"alpha": 0}, "alpha = 0: expected above 0"),
        ({"alpha": float("nan")}, "alpha = nan: expected above 0"),
        ({"dropout": 1.0}, "dropout = 1.0: expected 0 <= dropout < 1"),
        ({"dropout": -0.1}, "dropout = -0.1: expected 0 <= dropout < 1"),
        (dict.fromkeys(EVERYTHING, False), "query, key, value, projection, mlp, head = false: expected at least one"),
    ],
)
def test_values_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRA(**options)


def test_architectures_that_litgpts_lora_builds_otherwise_are_refused() -> None:
    config = small_config("Mixtral-8x7B-v0.1", n_shared_expert=1, first_k_dense_replace=1)
    with pytest.raises(ValueError, match="n_shared_expert = 1, first_k_dense_replace = 1: expected an architecture"):
        LoRA().build(config)
