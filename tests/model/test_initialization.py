import dataclasses
import math

import torch
from litgpt.lora import GPT as LoRAModel
from litgpt.lora import Config as LoRAConfig

from lit_consistency.model import GPT, init_weights
from tests.model.tiny_models import tiny_config


def initialized(name: str, seed: int = 0, **overrides: object) -> GPT:
    model = GPT(tiny_config(name, **overrides))
    torch.manual_seed(seed)
    init_weights(model, model.config)
    return model


def test_the_seed_decides_the_weights() -> None:
    first, second, other = (initialized("pythia-14m", seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_deviations_are_those_of_gpt_neox() -> None:
    model = initialized("pythia-14m", n_embd=128, vocab_size=512)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            expected = 1 / (2 * math.sqrt(128)) if name.endswith(".proj.weight") else math.sqrt(2 / (5 * 128))
            # 5 standard errors of the deviation of n normal numbers: 5 / sqrt(2 n)
            assert abs(parameter.std().item() / expected - 1) < 5 / math.sqrt(2 * parameter.numel()), name


def test_norms_start_at_one_and_biases_at_zero() -> None:
    vectors = {name: value for name, value in initialized("pythia-14m").named_parameters() if value.ndim == 1}
    assert len(vectors) > 10
    for name, value in vectors.items():
        assert torch.equal(value, torch.full_like(value, 0.0 if name.endswith("bias") else 1.0)), name


def test_norms_of_gemma_multiply_by_one() -> None:
    model = initialized("Gemma-2-2b")
    x = torch.tensor([[3.0, -3.0] * 16])
    torch.testing.assert_close(model.transformer.ln_f(x), x / 3.0)


def test_residual_projections_of_experts_are_scaled() -> None:
    model = initialized("Mixtral-8x7B-v0.1", n_embd=64)
    assert model.transformer.h[0].mlp.experts[0].proj.weight.std().item() < 0.07
    assert model.transformer.h[0].mlp.experts[0].fc_1.weight.std().item() > 0.075


def test_a_lora_model_gets_the_same_base_from_the_same_seed() -> None:
    full = initialized("pythia-14m")
    flags = {f"lora_{target}": True for target in ("query", "key", "value", "projection", "mlp", "head")}
    lora = LoRAModel(LoRAConfig(**dataclasses.asdict(full.config), **flags, lora_r=2))
    torch.manual_seed(0)
    init_weights(lora, lora.config)
    base = {name.replace(".linear.", "."): value for name, value in lora.state_dict().items() if "lora_" not in name}
    expected = full.state_dict()
    assert base.keys() == expected.keys()
    assert all(torch.equal(base[name], expected[name]) for name in expected)
    assert all((value == 0).all() for name, value in lora.state_dict().items() if name.endswith("lora_B"))
    assert all((value != 0).any() for name, value in lora.state_dict().items() if name.endswith("lora_A"))
