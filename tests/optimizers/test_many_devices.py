from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.optimizers.many_devices import OPTIMIZERS, alone, spawn

Results = dict[tuple[str, str, int], dict[str, Any]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return spawn(2, tmp_path_factory.mktemp("two"), ["ddp", "fsdp"])


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return spawn(4, tmp_path_factory.mktemp("four"), ["fsdp", "hsdp"])


def check_equals_one_process(results: Results, layout: str, name: str, world: int) -> None:
    expected = alone(name)
    for rank in range(world):
        found = results[layout, name, rank]["weights"]
        assert found.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-9)


def check_collectives(results: Results, layout: str, name: str) -> None:
    """Those of a step, all of them: against the number of shapes, not of matrices."""
    result = results[layout, name, 0]
    groups = result["groups"]
    if name.startswith("adamw"):
        expected = {}
    elif layout == "ddp":
        gathers = sum(result["collectives"].get(key, 0) for key in ("all_gather_single", "all_gather_into_tensor"))
        if "paired" in name:  # one for the blocks of a pair
            groups = len({(key.rpartition(".")[0].rpartition(".")[2]) for key in result["weights"] if "lora_A" in key})
            groups += 1  # q is another shape than k and v
        assert gathers == groups
        return
    else:
        expected = {"all_to_all_single": groups * 2 if "paired" not in name else groups}
    assert result["collectives"] == expected


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_two_processes_equal_one(two: Results, layout: str, name: str) -> None:
    check_equals_one_process(two, layout, name, 2)
    check_collectives(two, layout, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layout", ["fsdp", "hsdp"])
def test_four_processes_equal_one(four: Results, layout: str, name: str) -> None:
    check_equals_one_process(four, layout, name, 4)
    check_collectives(four, layout, name)
