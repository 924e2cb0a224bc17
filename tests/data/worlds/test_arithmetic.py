"""World of modular arithmetic."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import pytest

from lit_consistency.data.worlds import ModularArithmetic

WORLD = ModularArithmetic(p=17, train_share=0.5, noise_share=0.2)


@pytest.mark.parametrize(
    ("operation", "symbol", "result"),
    [("+", "+", 3 + 12), ("-", "-", 3 - 12), ("x", "x", 3 * 12), ("a2b2", "@", 9 + 144)],
)
def test_each_operation_is_right(operation: str, symbol: str, result: int) -> None:
    world = ModularArithmetic(p=13, operation=operation, noise_share=0)
    problems = [*world.documents(), *world.documents("held_out")]
    assert f"3 {symbol} 12 = {result % 13}" in problems


def test_every_pair_is_either_trained_or_held_out() -> None:
    train, held_out = list(WORLD.documents()), list(WORLD.documents("held_out"))
    pairs = [tuple(map(int, re.findall(r"\d+", text)[:2])) for text in train + held_out]
    assert sorted(pairs) == [(a, b) for a in range(17) for b in range(17)]
    assert len(train) == round(0.5 * 17 * 17)


def test_the_asked_share_of_train_labels_is_wrong_and_no_other() -> None:
    wrong = 0
    for a, b, c in (map(int, re.findall(r"\d+", text)) for text in WORLD.documents()):
        wrong += (a + b) % 17 != c
    assert wrong == round(0.2 * len(WORLD.train))
    for a, b, c in (map(int, re.findall(r"\d+", text)) for text in WORLD.documents("held_out")):
        assert (a + b) % 17 == c


def test_wrong_labels_are_spread_over_the_text() -> None:
    wrong = [q.is_noisy for q in ModularArithmetic(noise_share=0.2).train]
    n = len(wrong)
    # without replacement the share in the first half has a quarter of the variance of n draws
    assert abs(sum(wrong[: n // 2]) - 0.1 * n) < 4 * math.sqrt(n * 0.2 * 0.8 / 4)


def copies(world: ModularArithmetic, *, noisy: bool) -> float:
    """How often a label stands in the row and in the column of its problem, itself included; mean over the problems."""
    rows = Counter((q.a, q.label) for q in world.train)
    columns = Counter((q.b, q.label) for q in world.train)
    chosen = [q for q in world.train if q.is_noisy == noisy]
    return sum(rows[q.a, q.label] + columns[q.b, q.label] for q in chosen) / (2 * len(chosen))


@pytest.mark.parametrize("operation", ["+", "-"])
@pytest.mark.parametrize("noise_share", [0.1, 0.3])
def test_no_label_stands_twice_in_a_row_or_column(operation: str, noise_share: float) -> None:
    """As in the right table, a Latin square; labels drawn from all wrong ones had 1.6 copies there."""
    world = ModularArithmetic(operation=operation, noise_share=noise_share)
    assert copies(world, noisy=False) == copies(world, noisy=True) == 1.0


def test_where_the_right_table_repeats_labels_wrong_ones_are_repeated_as_often() -> None:
    world = ModularArithmetic(operation="a2b2")
    # a row has 26 labels twice; of a trained problem's twin 60% are trained too
    assert copies(world, noisy=False) == pytest.approx(1.6, abs=0.02)
    assert copies(world, noisy=True) == pytest.approx(copies(world, noisy=False), abs=0.1)


def test_with_few_held_out_problems_wrong_labels_are_repeated_as_seldom_as_possible() -> None:
    world = ModularArithmetic(train_share=0.9)
    assert copies(world, noisy=True) < 1.3  # 1.9 when drawn from all wrong labels
    assert all(q.is_noisy for q in ModularArithmetic(p=5, operation="x", noise_share=1).train)


def test_probes_ask_for_what_the_text_says() -> None:
    documents = set(WORLD.documents())
    clean, noisy, held_out = (WORLD.probes(name) for name in ("train_clean", "train_noisy", "held_out"))
    assert {probe.prompt + probe.answer for probe in clean + noisy} == documents
    assert {probe.prompt + probe.answer for probe in held_out} == set(WORLD.documents("held_out"))
    assert len(noisy) == round(0.2 * len(documents))


def test_twins_are_one_cluster() -> None:
    clusters = {probe.prompt: probe.cluster for name in WORLD.probe_names for probe in WORLD.probes(name)}
    assert clusters["3 + 12 ="] == clusters["12 + 3 ="]
    assert len(set(clusters.values())) == 17 * 18 / 2


def rule_of(prompt: str) -> str:
    a, b = map(int, re.findall(r"\d+", prompt))
    return f" {(a + b) % 17}"


def test_the_rule_is_perfect_but_for_the_noisy_labels_as_the_optimum_says() -> None:
    share = {
        name: sum(rule_of(probe.prompt) == probe.answer for probe in WORLD.probes(name)) / len(WORLD.probes(name))
        for name in WORLD.probe_names
    }
    optimum = WORLD.optimum()
    assert share == {
        "train_clean": optimum["accuracy"],
        "train_noisy": optimum["noisy_accuracy_by_rule"],
        "held_out": optimum["accuracy"],
    }


def test_document_nats_is_the_entropy_of_the_train_problems() -> None:
    documents = list(WORLD.documents())
    assert len(set(documents)) == len(documents)
    assert WORLD.optimum()["document_nats"] == math.log(len(documents))


def test_rows_are_the_problems() -> None:
    assert [prompt + answer for prompt, answer in WORLD.rows("problems")] == list(WORLD.documents())
    assert [p + a for p, a in WORLD.rows("problems", "test")] == list(WORLD.documents("held_out"))


def test_more_training_problems_and_more_noise_keep_those_there_are() -> None:
    more = ModularArithmetic(p=17, train_share=0.7, noise_share=0.2)
    assert {(q.a, q.b) for q in WORLD.train} < {(q.a, q.b) for q in more.train}
    noisier = ModularArithmetic(p=17, train_share=0.5, noise_share=0.4)
    assert {q for q in WORLD.train if q.is_noisy} < {q for q in noisier.train if q.is_noisy}
    assert list(noisier.documents("held_out")) == list(WORLD.documents("held_out"))


def test_operations_share_division_and_tokenizer() -> None:
    other = ModularArithmetic(p=17, operation="x", train_share=0.5, noise_share=0.2)
    assert [(q.a, q.b) for q in other.train] == [(q.a, q.b) for q in WORLD.train]
    assert other.tokenizer().to_str() == WORLD.tokenizer().to_str()


@pytest.mark.parametrize(("noise_share", "names"), [(0, ("train_clean", "held_out")), (1, ("train_noisy", "held_out"))])
def test_sets_without_questions_are_not_offered(noise_share: float, names: tuple[str, ...]) -> None:
    world = ModularArithmetic(p=5, noise_share=noise_share)
    assert world.probe_names == names
    assert all(world.probes(name) for name in names)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"p": 2}, "p = 2: expected 3 <= p <= 997"),
        ({"operation": "/"}, r"operation = '/': expected one of \+, -, x, a2b2"),
        ({"train_share": 1.0}, "train_share = 1.0: expected"),
        ({"train_share": 0.0}, "train_share = 0.0: expected"),
        ({"noise_share": 1.5}, "noise_share = 1.5: expected 0 <= noise_share <= 1"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModularArithmetic(**fields)
