from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch

from lit_consistency.analysis.core.model_files import ModelFiles
from lit_consistency.analysis.core.time_scale import tau, tau_of_pretraining, tau_of_stage
from lit_consistency.analysis.generalization_gap import GeneralizationGap, Sums, bca_interval, difference, of_size
from tests.analysis.models import nothing, subject, write_model

VOCABULARY = {"vocab_size": 384, "padded_vocab_size": 384}
TEXTS = {"seen": "seen/markov", "held_out": "markov/old"}


def test_the_gap_is_that_of_the_losses_token_by_token(tmp_path: Path) -> None:
    """Log-softmax of every scored token by itself; 40 documents of 17 tokens are all that the smaller text has."""
    of = subject(write_model(tmp_path / "model", **VOCABULARY))
    gap = GeneralizationGap(**TEXTS)
    gap.check(of)
    (row,) = gap.measure(of, "gap", nothing)
    assert row["n_tokens"] == 40 * 17
    model, _, _ = of.load()
    losses = {}
    for side, name in TEXTS.items():
        nll = []
        _, items, owners = of_size(of.text(name), 680, 0)
        assert len(set(owners)) == max(owners) + 1
        for item in items if side == "seen" else of.text(name).items:
            tokens, scored, _ = item.candidates[0]
            logits = torch.log_softmax(model(torch.as_tensor(tokens)[None])[0].double(), -1)
            nll += [-float(logits[t - 1, tokens[t]]) for t in range(1, len(tokens)) if scored[t]]
        losses[side] = sum(nll) / len(nll)
    # all of the seen text is taken, so that its order does not matter; held out are 100 documents
    assert row["seen_nats_per_token"] == pytest.approx(losses["seen"], rel=1e-5)
    assert row["gap"] == pytest.approx(row["held_out_nats_per_token"] - row["seen_nats_per_token"])
    assert row["held_out_nats_per_token"] == pytest.approx(losses["held_out"], rel=0.1)
    assert row["low"] < row["gap"] < row["high"]


def test_both_sides_have_exactly_as_many_tokens(tmp_path: Path) -> None:
    of = subject(write_model(tmp_path / "model", **VOCABULARY))
    for n in (1, 17, 18, 300):
        unit, items, owners = of_size(of.text("markov/old"), n, 3)
        assert unit == "documents"
        assert sum(int(item.candidates[0].supervised.sum()) for item in items) == n
        assert len(items) == len(owners) == math.ceil(n / 17)


def test_a_single_document_is_drawn_by_windows(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" ".join(["ba be bi bo bu da de di"] * 20))
    of = subject(write_model(tmp_path / "model", **VOCABULARY))
    unit, _, owners = of_size(of.text(str(tmp_path / "text.txt")), 100, 0)
    assert unit == "windows"
    assert len(set(owners)) == 4  # of 32 tokens


def bca_by_hand(seen: Sums, held_out: Sums, n_boot: int) -> tuple[float, float]:
    """Ends at Phi(z0 + (z0 + z) / (1 - a (z0 + z))), one resample after the other (Davison and Hinkley 1997, 5.3)."""
    rng, normal = np.random.default_rng(1), NormalDist()

    def drawn(side: Sums) -> Sums:
        at = rng.integers(len(side.nll), size=len(side.nll))
        return Sums(side.nll[at], side.n_tokens[at])

    resampled = np.array([difference(drawn(seen), drawn(held_out)) for _ in range(n_boot)])
    z0 = normal.inv_cdf(float((resampled < difference(seen, held_out)).mean()))
    cubes = squares = 0.0
    for k, side in enumerate((seen, held_out)):
        n = len(side.nll)
        without = []
        for i in range(n):
            left = Sums(np.delete(side.nll, i), np.delete(side.n_tokens, i))
            without.append(difference(left, held_out) if k == 0 else difference(seen, left))
        influence = (n - 1) * (np.mean(without) - np.array(without))
        cubes, squares = cubes + (influence**3).sum() / n**3, squares + (influence**2).sum() / n**2
    a = cubes / (6 * squares**1.5)
    shifted = [z0 + normal.inv_cdf(tail) for tail in (0.025, 0.975)]
    low, high = (float(np.quantile(resampled, normal.cdf(z0 + z / (1 - a * z)))) for z in shifted)
    return low, high


def test_the_interval_is_that_by_hand() -> None:
    """BCa of two samples, on the ratio of sums, within the noise of 9,999 resamples."""
    rng = np.random.default_rng(0)
    sides = [Sums(n * rng.gamma(2, 1, len(n)), n) for n in (rng.integers(5, 60, size=25) * 1.0, np.full(14, 20.0))]
    expected = bca_by_hand(*sides, 9999)
    low, high = bca_interval(*sides)
    means = [side.nll.sum() / side.n_tokens.sum() for side in sides]
    assert difference(*sides) == pytest.approx(means[1] - means[0])
    width = expected[1] - expected[0]
    assert low == pytest.approx(expected[0], abs=0.04 * width)
    assert high == pytest.approx(expected[1], abs=0.04 * width)


def test_documents_that_are_all_alike_leave_no_doubt_and_one_leaves_all() -> None:
    alike = Sums(np.full(5, 2.0), np.full(5, 1.0)), Sums(np.full(5, 3.0), np.full(5, 1.0))
    assert bca_interval(*alike) == (1.0, 1.0)
    assert all(math.isnan(end) for end in bca_interval(alike[0], Sums(np.ones(1), np.ones(1))))


WRONG = [
    ({"seen": "", "held_out": "a"}, "seen: expected a task"),
    ({"seen": "a", "held_out": "a"}, "seen, held_out: both are 'a'"),
    ({**TEXTS, "level": 1.0}, "level = 1.0"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_wrong_options_are_named(given: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        GeneralizationGap(**given)


def test_too_many_tokens_and_a_text_that_was_seen_are_refused(tmp_path: Path) -> None:
    of = subject(write_model(tmp_path / "model", **VOCABULARY))
    with pytest.raises(ValueError, match="seen = 'seen/markov' has 680, held_out = 'markov/old' has 1700"):
        GeneralizationGap(**TEXTS, tokens=700).check(of)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("ba be bi bo")
    with pytest.raises(ValueError, match="all of it stands in seen"):
        GeneralizationGap(str(tmp_path / "a.txt"), str(tmp_path / "b.txt")).check(of)


# -------------------- tau


def test_tau_is_the_share_of_the_training_in_which_an_update_fades_to_1_over_e(tmp_path: Path) -> None:
    """The decay alone, step after step, on a weight of 1."""
    stage = {"optimizer": "AdamW", "steps": 200, "tokens": 5000, "optimizer_options": {"lr": 0.02, "weight_decay": 0.5}}
    weight, step = 1.0, 0
    while weight > math.exp(-1):
        weight *= 1 - 0.02 * 0.5
        step += 1
    assert tau_of_stage(stage) == pytest.approx(step / 200, rel=0.02)
    assert tau_of_stage(stage) == pytest.approx(0.5)  # 25 tokens a step / (.02 * .5 * 5000)


def test_tau_of_sgd_counts_its_momentum() -> None:
    """Steps of a weight of 1 under the decay alone, with the buffer of torch.optim.SGD."""
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=1e-3, momentum=0.9, weight_decay=0.1)
    step = 0
    while float(parameter.detach()) > math.exp(-1):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        step += 1
    options = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.1}
    stage = {"optimizer": "SGD", "steps": 5000, "tokens": 1, "optimizer_options": options}
    assert tau_of_stage(stage) == pytest.approx(step / 5000, rel=0.02)


def test_without_decay_or_provenance_there_is_no_tau(tmp_path: Path) -> None:
    stage = {"optimizer": "AdamW", "steps": 200, "tokens": 5000, "optimizer_options": {"lr": 0.02, "weight_decay": 0.0}}
    assert math.isnan(tau_of_stage(stage))
    assert math.isnan(tau_of_stage({"optimizer": "AdamW"}))
    files = ModelFiles(write_model(tmp_path / "model"))
    assert files.provenance is not None
    pretraining = {"steps": 10, "tokens": 30, "optimizer_options": {"lr": 0.5, "weight_decay": 0.1}}
    first = {"model": "m", "optimizer": "AdamW", "method": "full", "stage": "pretrain", "base": None, **pretraining}
    files.provenance.history = [first]
    assert math.isnan(tau(files))
    assert tau_of_pretraining(files) == pytest.approx(2)
    first["base"] = "from somewhere"
    assert math.isnan(tau_of_pretraining(files))
