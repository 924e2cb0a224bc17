from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.first_step import FirstStep
from lit_consistency.analysis.linalg.directions import steepest_direction
from tests.analysis.models import TEXTS, nothing, subject, write_model

KINDS = ("sign", "orthogonal", "gaussian")


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A small model and both texts."""
    return subject(write_model(tmp_path_factory.mktemp("first_step") / "model", scale=0.1), texts=TEXTS, limit=8)


def test_steepest_directions_reach_the_dual_norm() -> None:
    """<D, G> is minus the sum of absolute values, the nuclear norm, the Frobenius norm, each over the length of D."""
    gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    values = np.linalg.svd(gradient.numpy(), compute_uv=False)
    dual = {
        "sign": np.abs(gradient.numpy()).sum() / math.sqrt(24),
        "orthogonal": values.sum() / math.sqrt(4),
        "gaussian": math.sqrt((values**2).sum()),
    }
    for kind, expected in dual.items():
        direction = steepest_direction(kind, gradient)
        assert float((direction * gradient).sum()) == pytest.approx(-expected, rel=1e-6)
        assert float(direction.norm()) == pytest.approx(1)
        assert not steepest_direction(kind, torch.zeros(3, 2)).any()
    # a gradient of rank one has one direction, and no other is made up
    alone = steepest_direction("orthogonal", torch.outer(torch.ones(5), torch.arange(1.0, 4.0)))
    assert np.linalg.matrix_rank(alone.numpy(), tol=1e-5) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_step_gains_what_the_gradient_says_and_the_model_is_left_as_it_was(of: Subject, kind: str) -> None:
    before = {name: p.clone() for name, p in of.load().model.named_parameters()}
    rows = FirstStep(smallest=1e-4, largest=2e-4, sizes=2).measure(of, kind, nothing)
    model = of.load().model
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    # the gradient by torch's own backward over whole rows, one after the other
    text = of.text(TEXTS[1])
    parameters = dict(model.named_parameters())
    hidden = [m for m in of.model.matrices if m.role == "hidden"]
    names = {m.parameter for m in hidden}
    for name in names:
        parameters[name].requires_grad_(True)
    total = torch.zeros(())
    for tokens, targets in text.rows:
        total = total + torch.nn.functional.cross_entropy(model(tokens[None])[0], targets, reduction="sum")
    gradients = dict(
        zip(names, torch.autograd.grad(total / text.n_scored, [parameters[n] for n in names]), strict=True)
    )
    for name in names:
        parameters[name].requires_grad_(False)
    slope = 0.0
    for m in hidden:
        g = gradients[m.parameter][m.start : m.stop].double()
        u, s, vt = torch.linalg.svd(g, full_matrices=False)
        d = {"sign": g.sign(), "orthogonal": u @ vt, "gaussian": g}[kind]
        slope += float((d / d.norm() * g).sum() * before[m.parameter][m.start : m.stop].double().norm())
    for row in rows:
        assert row["gain"] == pytest.approx(row["size"] * slope, rel=0.05)


def test_the_rise_is_read_where_the_gain_is_reached() -> None:
    rows = [
        {"model": "m", "kind": "sign", "size": size, "gain": gain, "rise": rise}
        for size, gain, rise in ((0.1, 0.05, 0.01), (0.2, 0.15, 0.04), (0.4, 0.3, 0.2), (0.8, 0.1, 2.0))
    ]
    numbers = FirstStep(gains=[0.025, 0.1, 0.4]).summary(rows)
    assert numbers["rise/sign/0.025"] == pytest.approx(0.005)  # from the base, where both are 0
    assert numbers["rise/sign/0.1"] == pytest.approx(0.025)
    assert numbers["log_rise/sign/0.1"] == pytest.approx(math.log(0.025))
    assert math.isnan(numbers["rise/sign/0.4"])
    (figure,) = FirstStep().figures([{**row, "optimizer": "AdamW"} for row in rows])
    # beyond the size that gains most, a step is a mistake: it is in the table alone
    assert len(figure.rows) == 3


def test_one_text_is_not_enough(tmp_path: Path) -> None:
    one = subject(write_model(tmp_path / "model"), texts=TEXTS[:1])
    with pytest.raises(ValueError, match="text = .*expected two"):
        FirstStep().check(one)
