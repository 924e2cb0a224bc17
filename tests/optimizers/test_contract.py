"""What every optimizer promises; the optimizers are found by their files in configs/optimizers/."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from lit_consistency.optimizers import contract, parameter_groups
from lit_consistency.optimizers.contract import Build, run, through_a_file
from tests.optimizers.models import small_gpt, small_lora

OptimizerFactory = Callable[[list[dict]], torch.optim.Optimizer]
FILES = sorted((Path(__file__).parent.parent.parent / "configs" / "optimizers").glob("*.yaml"))
SECTIONS = {path.stem: yaml.safe_load(path.read_text())["model"]["optimizer"] for path in FILES}
# options that reach the state and the code that the defaults of a file do not
VARIANTS = {
    **{name: (name, {}) for name in SECTIONS},
    "sgd nesterov": ("sgd", {"nesterov": True, "weight_decay": 0.1}),
    "muon quintic": ("muon", {"ns_coefficients": "quintic", "lr_scale": "spectral", "weight_decay": 0.1}),
    "muon plain": ("muon", {"orthogonalize": False, "nesterov": False}),
    "muon options": (
        "muon",
        {"normuon": True, "cautious_decay": True, "weight_decay": 0.1, "momentum_warmup_steps": 4},
    ),
    "mofo random": ("mofo", {"filter": "random", "decay_unselected": True, "weight_decay": 0.1}),
}
every_file = pytest.mark.parametrize("name", SECTIONS)
every_variant = pytest.mark.parametrize("name", VARIANTS)


def class_of(name: str) -> type[torch.optim.Optimizer]:
    module, _, cls = SECTIONS[name]["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), cls)


def defaults_of(name: str) -> dict[str, Any]:
    """Every hyperparameter with its default, as a configuration writes it: those of the class that takes **kwargs too.

    Options that a class gives its parent itself, and does not offer, are left out.
    """
    parsed = parser_of_factories().parse_object({"optimizer": {"class_path": SECTIONS[name]["class_path"]}})
    options = vars(parsed.optimizer.init_args)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}


def build(name: str, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    file, more = VARIANTS[name]
    groups = options.pop("groups", None) or parameter_groups(model)
    return class_of(file)(groups, **(SECTIONS[file]["init_args"] | more | options))


def builder(name: str, **options: Any) -> Build:
    return lambda groups: build(name, nn.Module(), groups=groups, **options)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_every_optimizer_has_a_file() -> None:
    assert {"adamw", "mofo", "muon", "sgd"} <= set(SECTIONS)


@every_file
def test_the_file_names_hyperparameters_with_their_defaults(name: str) -> None:
    assert "lr" in SECTIONS[name]["init_args"]
    assert SECTIONS[name]["init_args"].items() <= defaults_of(name).items()


def test_filtered_muon_has_every_option_of_muon_but_pairs() -> None:
    muon, filtered = defaults_of("muon"), defaults_of("filtered_muon")
    assert {key: value for key, value in muon.items() if key != "adapters"}.items() <= filtered.items()
    assert set(filtered) - set(muon) == {"fraction", "filter_stage"}
    assert "adapters" not in filtered


@every_file
def test_the_file_opens_with_its_command(name: str) -> None:
    (path,) = [path for path in FILES if path.stem == name]
    head = path.read_text().split("model:")[0]
    assert (
        f"python -m lit_consistency fit --config configs/quickstart.yaml --config configs/optimizers/{path.name}"
        in head
    )


def parser_of_factories() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=OptimizerFactory)
    return parser


@every_file
def test_jsonargparse_makes_a_factory_of_the_file(name: str) -> None:
    parser = parser_of_factories()
    parsed = parser.parse_object({"optimizer": SECTIONS[name]})
    optimizer = parser.instantiate_classes(parsed).optimizer(parameter_groups(small_gpt()))
    direct = build(name, small_gpt())
    assert type(optimizer) is type(direct)
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    assert options == [{k: v for k, v in group.items() if k != "params"} for group in direct.param_groups]


@every_file
def test_an_unknown_hyperparameter_is_refused(name: str) -> None:
    section = {"class_path": SECTIONS[name]["class_path"], "init_args": {"learning_rate": 0.1}}
    with pytest.raises(ArgumentError, match="learning_rate"):
        parser_of_factories().parse_object({"optimizer": section})


@every_file
def test_help_describes_every_hyperparameter(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_argument("--optimizer", type=OptimizerFactory)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--optimizer.help={SECTIONS[name]['class_path']}"])
    text = " ".join(capsys.readouterr().out.split()).split("Help for")[1]
    for option in defaults_of(name):
        # a list has a second flag, --optimizer.OPTION+; an argument that is not described shows its type alone
        entry = re.split(rf"--optimizer\.(?!{option}\+)", text.split(f"--optimizer.{option} ")[1])[0]
        described = re.findall(r"\b[a-z]{2,}\b", entry.split("(type:")[0])
        assert len(described) >= 2, entry


@every_variant
def test_the_closure_is_called_once_with_gradients_and_its_loss_returned(name: str) -> None:
    contract.calls_closure_once(builder(name), small_gpt)


@every_variant
def test_every_parameter_moves_and_no_gradient_does(name: str) -> None:
    assert contract.unmoved(builder(name), lambda: small_gpt("pythia-14m")) == []
    contract.leaves_gradients(builder(name), lambda: small_gpt("pythia-14m"))


@every_variant
def test_lora_adapters_are_trained_and_nothing_else(name: str) -> None:
    assert contract.unmoved(builder(name), small_lora) == []


@every_variant
def test_a_saved_state_continues_bit_for_bit(name: str) -> None:
    contract.continues_bit_for_bit(builder(name), small_gpt)


@every_variant
def test_a_loaded_state_is_a_copy(name: str) -> None:
    model = small_gpt()
    optimizer = build(name, model)
    run(optimizer, model, range(1))
    other = build(name, model)
    other.load_state_dict(optimizer.state_dict())
    saved = through_a_file(optimizer.state_dict())["state"]
    run(other, model, range(1, 3))
    for key, state in optimizer.state_dict()["state"].items():
        assert_equal(state, saved[key])


@every_variant
def test_state_of_bfloat16_parameters_is_float32_and_stays_so(name: str) -> None:
    model = small_gpt().bfloat16()
    optimizer = build(name, model)
    run(optimizer, model, range(2))
    saved = through_a_file(optimizer.state_dict())
    loaded = build(name, model)
    loaded.load_state_dict(saved)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for key, state in loaded.state_dict()["state"].items():
        assert {value.dtype for value in state.values()} == {torch.float32}
        assert_equal(state, saved["state"][key])


@every_variant
def test_state_of_float64_parameters_is_float64_but_for_the_counter(name: str) -> None:
    model = small_gpt().double()
    optimizer = build(name, model)
    run(optimizer, model, range(1))
    for state in optimizer.state.values():
        assert {key: value.dtype for key, value in state.items() if key != "step"} == dict.fromkeys(
            set(state) - {"step"}, torch.float64
        )


@every_variant
def test_parameters_without_a_gradient_keep_value_and_state(name: str) -> None:
    contract.keeps_without_gradient(builder(name), small_gpt)


@every_variant
def test_the_rate_of_every_group_is_the_schedulers(name: str) -> None:
    contract.follows_the_rate(builder(name), small_gpt)


@every_variant
def test_a_group_that_comes_later_moves_as_one_that_was_there(name: str) -> None:
    """It has the options of its role; groups that cannot be moved are refused before anything is added."""
    straight, model = small_gpt(), small_gpt()
    expected = run(build(name, straight), straight, range(3))
    groups = parameter_groups(model)
    optimizer = build(name, model, groups=groups[:1])
    for group in groups[1:]:
        optimizer.add_param_group(group)
    assert_equal(run(optimizer, model, range(3)), expected)
    options = [{k: v for k, v in g.items() if k not in ("params", "split")} for g in build(name, model).param_groups]
    for found, wanted in zip(optimizer.param_groups, options, strict=True):
        assert found.keys() >= wanted.keys()
        assert found["weight_decay"] == wanted["weight_decay"]
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group(groups[0])
    assert len(optimizer.param_groups) == len(groups)


@pytest.mark.parametrize("name", ["muon", "filtered_muon", "mofo"])
def test_a_later_group_without_a_role_is_refused_at_once(name: str) -> None:
    model = small_gpt()
    optimizer = build(name, model)
    before = len(optimizer.param_groups)
    with pytest.raises(ValueError, match=r"call parameter_groups\(model\)"):
        optimizer.add_param_group({"params": [("late", nn.Parameter(torch.zeros(2, 2)))]})
    assert len(optimizer.param_groups) == before


@every_variant
def test_the_groups_that_are_given_are_left_as_they_were(name: str) -> None:
    groups = parameter_groups(small_gpt())
    file, more = VARIANTS[name]
    before = [dict(group) for group in groups]
    class_of(file)(groups, **more)
    assert groups == before


@every_variant
def test_groups_keep_their_names_roles_and_splits(name: str) -> None:
    contract.takes_groups(builder(name), small_gpt)


@every_variant
def test_lightning_may_clip_its_gradients(name: str) -> None:
    contract.may_be_clipped(builder(name), small_gpt)


@every_variant
def test_tensors_of_another_memory_layout_move_alike(name: str) -> None:
    plain, strided = small_gpt().double(), small_gpt().double()
    for parameter in strided.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.T.contiguous().T
    expected, found = run(build(name, plain), plain, range(3)), run(build(name, strided), strided, range(3))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)
