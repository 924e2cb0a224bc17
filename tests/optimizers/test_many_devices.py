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
    """All of a step: counted against the number of shapes, not of matrices."""
    result = results[layout, name, 0]
    collectives, groups = result["collectives"], result["groups"]
    gathered = sum(n for collective, n in collectives.items() if "all_gather" in collective)
    if name.startswith("adamw"):
        assert collectives == {}
    elif name.startswith("mofo"):  # counted in test_mofo_sharded.py
        assert (collectives == {}) == (layout == "ddp")
    elif layout == "ddp":
        assert sum(collectives.values()) == gathered == (0 if name == "muon unshared" else groups)
    else:
        shared = layout == "hsdp" and name != "muon unshared"
        assert gathered == (result["stacks"] if shared else 0)
        assert sum(collectives.values()) - gathered == collectives["all_to_all_single"] == 2 * groups


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
@pytest.mark.slow
def test_two_processes_equal_one(two: Results, layout: str, name: str) -> None:
    check_equals_one_process(two, layout, name, 2)
    check_collectives(two, layout, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layout", ["fsdp", "hsdp"])
def test_four_processes_equal_one(four: Results, layout: str, name: str) -> None:
    check_equals_one_process(four, layout, name, 4)
    check_collectives(four, layout, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "muon" in name])
def test_replicas_do_not_drift_apart_by_a_bit(four: Results, name: str) -> None:
    """Each has worked on a part of the matrices. A batch of another size rounds otherwise, so that is compared too."""
    first = four["hsdp", name, 0]["weights"]
    for rank in range(1, 4):
        assert all(torch.equal(weight, first[key]) for key, weight in four["hsdp", name, rank]["weights"].items())
    if name == "muon":
        for key, weight in four["hsdp", "muon unshared", 0]["weights"].items():
            torch.testing.assert_close(first[key], weight, rtol=0, atol=1e-12)
