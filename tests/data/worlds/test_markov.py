"""World of Markov chains."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_consistency.data.worlds import MarkovChains

WORLD = MarkovChains(n_symbols=6, n_chains=3, n_new=2, concentration=0.5, length=20, n_documents=300)
VOCAB_SIZE = WORLD.tokenizer().get_vocab_size()


def true_model(world: MarkovChains, tag: str) -> Any:
    """A model that knows the chain of the tag: looks the rows up by the words, not by the world's own numbers."""
    tokenizer = world.tokenizer()
    symbols = sorted({word for text in world.documents() for word in text.split()[1:]}, key=order_of(world).__getitem__)
    ids = [tokenizer.encode(symbol).ids[0] for symbol in symbols]

    def model(tokens: Tensor) -> Tensor:
        logits = torch.full((*tokens.shape, VOCAB_SIZE), -torch.inf, dtype=torch.float64)
        logits[..., 0] = 0  # the first place is not asked
        for state, token in enumerate(ids):
            row = torch.full((VOCAB_SIZE,), -torch.inf, dtype=torch.float64)
            row[ids] = torch.from_numpy(np.log(world.transitions[tag][state]))
            logits[tokens == token] = row
        return logits

    return model


def order_of(world: MarkovChains) -> dict[str, int]:
    choices = world.probes("old")[0].choices
    return {choice.strip(): i for i, choice in enumerate(choices)}


def test_rows_and_stationary_distributions_are_distributions() -> None:
    for tag in [*WORLD.chains("old"), *WORLD.chains("new")]:
        rows, stationary = WORLD.transitions[tag], WORLD.stationary[tag]
        np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-12)
        np.testing.assert_allclose(stationary @ rows, stationary, atol=1e-12)
        assert stationary.sum() == pytest.approx(1, rel=1e-12)
        assert (rows >= 0).all()
        assert (stationary >= 0).all()


def test_documents_follow_their_chain() -> None:
    order = order_of(WORLD)
    pairs: Counter[tuple[str, int, int]] = Counter()
    for document in WORLD.documents():
        tag, *symbols = document.split()
        assert len(symbols) == 20
        states = [order[symbol] for symbol in symbols]
        pairs.update((tag, i, j) for i, j in zip(states[:-1], states[1:], strict=True))
    for tag in WORLD.chains():
        for i in range(6):
            n = sum(pairs[tag, i, j] for j in range(6))
            for j, p in enumerate(WORLD.transitions[tag][i]):
                assert abs(pairs[tag, i, j] - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1


def test_first_symbols_follow_the_stationary_distribution() -> None:
    order = order_of(WORLD)
    first = Counter((d.split()[0], order[d.split()[1]]) for d in WORLD.documents())
    for tag in WORLD.chains():
        for i, p in enumerate(WORLD.stationary[tag]):
            assert abs(first[tag, i] - 300 * p) <= 5 * math.sqrt(300 * p * (1 - p)) + 1


def test_the_true_table_has_kl_zero_and_a_uniform_one_the_expected() -> None:
    for kind in ("old", "new"):
        tags = WORLD.chains(kind)
        truth = np.log(np.stack([WORLD.transitions[tag] for tag in tags]))
        assert WORLD.kl(truth, kind) == pytest.approx(dict.fromkeys(tags, 0.0), abs=1e-12)
        uniform = np.full((len(tags), 6, 6), -math.log(6))
        expected = {tag: math.log(6) - WORLD.entropy_rate[tag] for tag in tags}
        assert WORLD.kl(uniform, kind) == pytest.approx(expected, rel=1e-12)


def test_kl_equals_a_loop_over_the_entries() -> None:
    rng = np.random.default_rng(0)
    table = np.log(rng.dirichlet(np.ones(6), size=(3, 6)))
    for c, tag in enumerate(WORLD.chains()):
        slow = 0.0
        for i in range(6):
            for j in range(6):
                p = WORLD.transitions[tag][i, j]
                slow += WORLD.stationary[tag][i] * p * (math.log(p) - table[c, i, j])
        assert WORLD.kl(table)[tag] == pytest.approx(slow, rel=1e-12)


def test_impossible_transitions_count_nothing_whatever_the_model_says() -> None:
    world = MarkovChains(n_symbols=2, n_chains=1)
    world.transitions["BA"] = np.array([[0.0, 1.0], [0.5, 0.5]])
    assert world.stationary["BA"] == pytest.approx([1 / 3, 2 / 3])
    assert world.entropy_rate["BA"] == pytest.approx(2 / 3 * math.log(2))
    assert world.kl(np.array([[[-math.inf, 0.0], [math.log(0.5)] * 2]]))["BA"] == pytest.approx(0, abs=1e-12)


def test_kl_of_a_model_is_zero_for_the_true_one() -> None:
    for tag in WORLD.chains():
        assert WORLD.model_kl(true_model(WORLD, tag))[tag] == pytest.approx(0, abs=1e-12)
    assert WORLD.model_kl(true_model(WORLD, "BA"))["BE"] > 0.1


def test_kl_of_a_uniform_model_is_what_it_should_be_given_the_states_seen() -> None:
    found = WORLD.model_kl(lambda tokens: torch.zeros(*tokens.shape, VOCAB_SIZE))
    for tag in WORLD.chains():
        entropy = -(WORLD.transitions[tag] * np.log(WORLD.transitions[tag])).sum(1)
        spread = math.sqrt(float(WORLD.stationary[tag] @ entropy**2) - WORLD.entropy_rate[tag] ** 2)
        expected = math.log(VOCAB_SIZE) - WORLD.entropy_rate[tag]
        # 950 transitions, correlated along a sequence: five standard errors of 50 independent ones
        assert abs(found[tag] - expected) < 5 * spread / math.sqrt(50)


def test_loss_of_the_truth_on_fresh_text_is_the_entropy_rate() -> None:
    world = MarkovChains(n_symbols=6, n_chains=1, concentration=0.5, length=200, n_documents=100)
    tokenizer = world.tokenizer()
    losses = []
    for document in world.documents():
        targets = torch.tensor(tokenizer.encode(document).ids[1:])
        log_probs = world.true_log_probs(document)
        losses.append(-log_probs[1:].gather(1, targets[1:, None]).mean().item())
    standard_error = np.std(losses) / math.sqrt(len(losses))
    assert abs(np.mean(losses) - world.entropy_rate["BA"]) < 4 * standard_error
    assert world.optimum()["nats_per_token/BA"] == world.entropy_rate["BA"]


def test_true_log_probs_are_distributions_over_the_vocabulary() -> None:
    document = next(WORLD.documents())
    tag, first, second = document.split()[:3]
    log_probs = WORLD.true_log_probs(document)
    assert log_probs.shape == (20, VOCAB_SIZE)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(20))
    order, tokenizer = order_of(WORLD), WORLD.tokenizer()
    assert log_probs[0, tokenizer.encode(first).ids[0]].exp() == pytest.approx(WORLD.stationary[tag][order[first]])
    expected = WORLD.transitions[tag][order[first], order[second]]
    assert log_probs[1, tokenizer.encode(second).ids[0]].exp() == pytest.approx(expected, rel=1e-6)


def test_probes_ask_for_the_most_probable_symbol() -> None:
    order = order_of(WORLD)
    for name in WORLD.probe_names:
        probes = WORLD.probes(name)
        assert {probe.tags["chain"] for probe in probes} == set(WORLD.chains(name))
        answers = {probe.cluster: probe.answer for probe in probes}
        assert all(answers[probe.cluster] == probe.answer for probe in probes), "one symbol, one answer"
        for probe in probes:
            tag, *symbols = probe.prompt.split()
            row = WORLD.transitions[tag][order[symbols[-1]]]
            assert row[order[probe.answer.strip()]] == row.max()
    assert WORLD.optimum()["chance"] == 1 / 6


def test_the_task_is_about_new_chains_and_its_completions_are_transitions() -> None:
    train, test = WORLD.rows("new_chain"), WORLD.rows("new_chain", "test")
    assert (len(train), len(test)) == (600, 100)
    assert {prompt.split()[0] for prompt, _ in train} == set(WORLD.chains("new"))
    assert not set(WORLD.chains("new")) & set(WORLD.chains("old"))
    assert all(len(prompt.split()) == 2 and len(rest.split()) == 19 for prompt, rest in train)


def test_parts_and_splits_are_drawn_apart() -> None:
    assert not set(WORLD.documents()) & set(WORLD.documents("held_out"))
    assert not set(WORLD.rows("new_chain")) & set(WORLD.rows("new_chain", "test"))


def test_changing_one_size_changes_nothing_else() -> None:
    fields: dict[str, Any] = {"n_symbols": 6, "concentration": 0.5, "length": 20}
    more = MarkovChains(n_chains=5, n_new=4, n_documents=400, **fields)
    assert set(WORLD.documents()) < set(more.documents())
    assert set(WORLD.documents("held_out")) < set(more.documents("held_out"))
    assert set(WORLD.rows("new_chain")) < set(more.rows("new_chain"))
    np.testing.assert_array_equal(more.transitions["BA"], WORLD.transitions["BA"])


def test_a_small_concentration_is_nearly_deterministic_and_a_great_one_nearly_uniform() -> None:
    rates = [MarkovChains(n_chains=1, concentration=c).entropy_rate["BA"] for c in (0.01, 0.15, 100)]
    assert rates[0] < 0.5 < rates[1] < 3 < rates[2] < math.log(32)


def test_a_table_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 6, 6\): expected \(3, 6, 6\)"):
        WORLD.kl(np.zeros((2, 6, 6)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_symbols": 81}, "n_symbols = 81: expected 2 <= n_symbols <= 80"),
        ({"n_chains": 0}, "n_chains = 0: expected 1 <= n_chains <= 20"),
        ({"n_new": 21}, "n_new = 21: expected 1 <= n_new <= 20"),
        ({"concentration": 0.0}, "concentration = 0.0: expected 0.01 <= concentration <= 100"),
        ({"length": 1}, "length = 1: expected 2 <= length"),
        ({"n_documents": 0}, "n_documents = 0: expected 1 <= n_documents"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MarkovChains(**fields)
