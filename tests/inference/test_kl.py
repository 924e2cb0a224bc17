from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_consistency.inference import head
from lit_consistency.inference.items import Candidate, Item
from lit_consistency.inference.kl import IGNORE, KLTerms, KLToBase, choose_positions, forward_kl, reverse_kl
from lit_consistency.model import GPT
from tests.model.tiny_models import tiny_model
from tests.reference.divergence import mean_kl

CPU = torch.device("cpu")


def pair(seed: int = 0, n: int = 7, vocabulary: int = 11, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a base and of a model that is so far from it."""
    torch.manual_seed(seed)
    logits = torch.randn(n, vocabulary) * 3
    return logits.log_softmax(-1), (logits + apart * torch.randn(n, vocabulary)).log_softmax(-1)


@pytest.mark.parametrize("apart", [0.1, 1.0, 5.0])
def test_both_directions_equal_a_loop_in_float64(apart: float) -> None:
    base, model = pair(apart=apart)
    assert forward_kl(base, model) == pytest.approx(mean_kl(base, model), rel=1e-4)
    assert reverse_kl(base, model) == pytest.approx(mean_kl(model, base), rel=1e-4)


def test_the_two_directions_differ_and_turn_into_each_other() -> None:
    base, model = pair()
    assert reverse_kl(base, model) == forward_kl(model, base)
    assert abs(reverse_kl(base, model) - forward_kl(base, model)) > 0.01


def test_a_model_that_has_not_moved_is_at_zero() -> None:
    base, _ = pair()
    assert (forward_kl(base, base), reverse_kl(base, base)) == (0.0, 0.0)


def test_what_the_base_rules_out_is_free_forward_and_infinite_in_reverse() -> None:
    base = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]])
    model = torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert forward_kl(base, model) == pytest.approx(math.log(2))
    assert reverse_kl(base, model) == math.inf


def test_what_the_model_rules_out_is_free_in_reverse_and_infinite_forward() -> None:
    base = torch.tensor([[0.25, 0.25, 0.5]]).log()
    model = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]])
    assert forward_kl(base, model) == math.inf
    assert reverse_kl(base, model) == pytest.approx(math.log(2))


def test_a_base_with_another_vocabulary_is_refused_in_reverse() -> None:
    base, model = pair()
    with pytest.raises(ValueError, match=r"\[7, 11\]: expected that of the base, \[7, 9\]"):
        reverse_kl(base[:, :9], model)


def answers(lengths: Sequence[int], n_prompt: int = 4, seed: int = 0) -> list[Item]:
    """Items whose right answers have so many supervised tokens; the wrong ones are not to be read."""
    rng = np.random.default_rng(seed)
    items = []
    for n in lengths:
        tokens = rng.integers(1, 90, n_prompt + n)
        right = Candidate(tokens, np.arange(n_prompt + n) >= n_prompt, n)
        items.append(Item([Candidate(tokens[::-1], np.ones(n_prompt + n, dtype=bool), n), right], gold=1))
    return items


def by_hand(base: nn.Module, model: nn.Module, items: list[Item]) -> tuple[list[list[float]], list[list[float]]]:
    """Of every item and supervised position, the divergences forward and in reverse, from whole forwards."""
    forward, reverse = [], []
    for item in items:
        answer = item.candidates[item.gold]
        with torch.no_grad():
            p, q = (m(torch.from_numpy(answer.tokens)[None])[0].double().log_softmax(-1) for m in (base, model))
        places = np.flatnonzero(answer.supervised[1:])
        forward.append([mean_kl(p[[t]], q[[t]]) for t in places])
        reverse.append([mean_kl(q[[t]], p[[t]]) for t in places])
    return forward, reverse


def two_models(family: str = "pythia-14m") -> tuple[GPT, GPT]:
    base, model = tiny_model(family), tiny_model(family)
    with torch.no_grad():
        model.lm_head.weight.add_(0.3 * torch.randn(model.lm_head.weight.shape, generator=torch.Generator()))
    return base.eval(), model.eval()


def compared(base: nn.Module, model: nn.Module, items: list[Item], batch_tokens: int = 40, **options: int) -> KLTerms:
    kl = KLToBase(items, n_vocab=96, batch_tokens=batch_tokens, device=CPU, **options)
    kl.read_base(base)
    return kl.terms(model)


@pytest.mark.parametrize("family", ["pythia-14m", "Gemma-2-2b"])
@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_divergences_at_all_positions_equal_whole_forwards(
    family: str, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "ELEMENTS", 96 * 5)  # distributions come five at a time
    base, model = two_models(family)
    items = answers([3, 1, 0, 7, 12, 2])
    terms = compared(base, model, items, batch_tokens)
    forward, reverse = by_hand(base, model, items)
    assert terms.forward.tolist() == pytest.approx([kl for of_item in forward for kl in of_item], rel=1e-4)
    assert terms.reverse.tolist() == pytest.approx([kl for of_item in reverse for kl in of_item], rel=1e-4)
    sums, sums_in_reverse, counts = terms.by_item()
    assert counts.tolist() == [3, 1, 7, 12, 2]
    assert sums.tolist() == pytest.approx([sum(of_item) for of_item in forward if of_item], rel=1e-4)
    assert sums_in_reverse.tolist() == pytest.approx([sum(of_item) for of_item in reverse if of_item], rel=1e-4)


def test_a_part_of_the_positions_has_the_terms_of_those_positions() -> None:
    base, model = two_models()
    items = answers([5, 9, 2, 30, 4])
    everything, some = compared(base, model, items), compared(base, model, items, n_positions=11)
    starts = np.cumsum([0, 5, 9, 2, 30, 4])
    chosen = [start + place for start, places in zip(starts, places_of(items, 11), strict=False) for place in places]
    assert len(chosen) == 11
    assert some.forward.tolist() == pytest.approx(everything.forward[chosen].tolist(), rel=1e-5)
    assert some.items.tolist() == everything.items[chosen].tolist()


def places_of(items: list[Item], n: int) -> list[list[int]]:
    """Of every item the chosen ones among its supervised tokens."""
    positions = choose_positions(items, n)
    owners = dict.fromkeys(positions.items.tolist())
    places: list[list[int]] = [[] for _ in items]
    for owner, (_, targets) in zip(owners, positions.rows, strict=True):
        # targets are shifted by one, behind a prompt of four
        places[owner] = ((targets != IGNORE).nonzero()[:, 0] - 3).tolist()
    return places


@pytest.mark.parametrize("lengths", [[100] * 100, list(range(1, 142)), [9_900] + [1] * 100])
@pytest.mark.parametrize("n", [256, 1_000])
def test_positions_are_spread_over_all_items_and_all_places_in_them(lengths: list[int], n: int) -> None:
    items = answers(lengths)
    places = places_of(items, n)
    counts = np.asarray([len(of_item) for of_item in places])
    assert counts.sum() == n
    assert np.abs(counts - n * np.asarray(lengths) / sum(lengths)).max() <= 2
    early = [place < length / 2 for of_item, length in zip(places, lengths, strict=True) for place in of_item]
    assert abs(np.mean(early) - 0.5) < 0.06, "a fixed step would take the same place of every item"
    assert places_of(items, n) == places


def test_all_positions_are_taken_where_they_fit_and_as_many_as_fit_otherwise() -> None:
    items = answers([10] * 20)
    options = {"n_vocab": 96, "batch_tokens": 100, "device": CPU}
    assert KLToBase(items, **options).n_positions == 200
    few = KLToBase(items, **options, memory=4 * 96 * 50)
    assert (few.n_positions, few.n_available) == (50, 200)
    assert len(few.positions.rows) == 20
    with pytest.raises(ValueError, match="n_positions = 0: expected at least 1"):
        KLToBase(items, **options, n_positions=0)


def test_another_vocabulary_and_no_positions() -> None:
    base, _ = two_models()
    items = answers([3, 4])
    with pytest.raises(ValueError, match=r"model has shape \[7, 128\]: expected that of the base, \[7, 96\]"):
        compared(base, tiny_model("pythia-14m", vocab_size=128, padded_vocab_size=128), items)
    empty = compared(base, base, answers([0]))
    assert [len(part) for part in (*empty, *empty.by_item())] == [0] * 6


def test_the_base_is_no_distance_from_itself_with_and_without_a_forward() -> None:
    base, _ = two_models("Gemma-2-2b")
    kl = KLToBase(answers([3, 1, 0, 7]), n_vocab=96, batch_tokens=40, device=CPU)
    known = kl.terms_of_base()
    kl.read_base(base)
    assert all(torch.equal(one, other) for one, other in zip(known, kl.terms(base), strict=True))
    assert (known.forward.tolist(), known.reverse.tolist()) == ([0.0] * 11, [0.0] * 11)
