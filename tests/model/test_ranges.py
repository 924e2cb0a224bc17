import pytest

from lit_consistency.model import model_config


def refused(overrides: dict, match: str, name: str = "pythia-14m") -> None:
    with pytest.raises(ValueError, match=match):
        model_config(name, None, overrides, None)


def test_sizes_are_at_least_one() -> None:
    for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "intermediate_size"):
        for value in (0, -4):
            refused({key: value}, f"overrides.{key} = {value}: expected at least 1")


def test_a_wrong_type_is_named() -> None:
    for overrides, expected in (
        ({"n_layer": "4"}, "overrides.n_layer = '4': expected int"),
        ({"n_layer": True}, "overrides.n_layer = True: expected int"),
        ({"n_layer": 2.0}, "overrides.n_layer = 2.0: expected int"),
        ({"bias": 1}, "overrides.bias = 1: expected bool"),
        ({"norm_eps": "small"}, "overrides.norm_eps = 'small': expected float"),
        ({"norm_class_name": "BatchNorm"}, r"overrides.norm_class_name = 'BatchNorm': expected Literal\['LayerNorm'"),
        ({"rope_indices": [0, "1"]}, r"overrides.rope_indices = \[0, '1'\]: expected list\[int\] \| None"),
    ):
        refused(overrides, expected)


def test_an_integer_is_a_float_and_none_is_none() -> None:
    config = model_config("pythia-14m", None, {"norm_eps": 1, "rope_adjustments": None}, None)
    assert config.norm_eps == 1


def test_heads_divide_the_width_or_say_their_size() -> None:
    refused({"n_embd": 32, "n_head": 5}, "overrides.n_head = 5: expected a divisor of n_embd = 32")
    assert model_config("pythia-14m", None, {"n_embd": 32, "n_head": 5, "head_size": 8}, None).head_size == 8


def test_query_groups_divide_the_heads() -> None:
    refused({"n_query_groups": 3}, "overrides.n_query_groups = 3: expected a divisor of n_head = 4")


def test_rotated_dimensions_are_even() -> None:
    refused(
        {"n_embd": 16, "n_head": 4}, "overrides.head_size = 4: expected an even number of rotated dimensions, got 1"
    )
    refused({"n_embd": 8, "n_head": 4}, "even number of rotated dimensions, got 0 with rotary_percentage = 0.25")
    refused({"rotary_percentage": 1.5}, "expected 0 <= rotary_percentage <= 1")
    assert model_config("pythia-14m", None, {"rotary_percentage": 0.0}, None).rope_n_elem == 0


def test_no_more_experts_are_chosen_than_there_are() -> None:
    refused({"n_expert": 4, "n_expert_per_token": 5}, "n_expert_per_token = 5: expected 1 <=", "Mixtral-8x7B-v0.1")


def test_what_litgpt_asserts_is_an_error_of_value() -> None:
    refused({"first_k_dense_replace": 1}, "expected a combination that LitGPT's Config takes")
