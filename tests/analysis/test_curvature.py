from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_consistency.analysis.core.hessian import TextLoss, quadratic_along, sample_rows
from lit_consistency.analysis.core.run import Options, analyze
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.curvature import FRACTIONS, Curvature
from lit_consistency.model import IGNORE
from tests.analysis.models import TEXTS, WORLD, nothing, subject, write_model

SMALL: dict[str, Any] = {"n_layer": 1, "n_head": 1, "n_embd": 4, "intermediate_size": 4, "rotary_percentage": 0.5}
WITH_TEXT = {**SMALL, "padded_vocab_size": 384, "vocab_size": 378}
"""As many tokens as the texts of the world have."""
N_HIDDEN = 4 * 4 * 4 + 2 * 4 * 4
V = 24


def some_rows() -> list[tuple[Tensor, Tensor]]:
    """Rows of different lengths, of which not everything is scored."""
    rows = []
    for length in (3, 7, 5, 9):
        tokens = torch.randint(0, V, (length + 1,), generator=torch.Generator().manual_seed(length))
        targets = tokens[1:].clone()
        targets[: length // 3] = IGNORE
        rows.append((tokens[:-1], targets))
    return rows


def small(folder: Path, role: str = "hidden", batch_tokens: int = 512) -> tuple[Subject, TextLoss]:
    """A model of which 96 parameters are hidden, and its loss in float64."""
    of = subject(write_model(folder / "model", scale=0.6, **SMALL, padded_vocab_size=V, vocab_size=V))
    names = [name for name, its in of.model.roles.items() if its == role]
    return of, TextLoss(of.load().model, names, some_rows(), batch_tokens, torch.float64)


def logits_of(of: Subject, loss: TextLoss, point: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of every row alone, without padding: (R, V) and targets (R,), as a function of (n,) parameters."""
    model = of.load().model
    shapes = [of.model.shapes[name] for name in loss.names]
    pieces = point.split([math.prod(shape) for shape in shapes])
    weights = {name: parameter.double() for name, parameter in model.named_parameters()}
    weights |= {name: piece.view(shape) for name, piece, shape in zip(loss.names, pieces, shapes, strict=True)}
    found = []
    with sdpa_kernel(SDPBackend.MATH):
        for tokens, targets in loss.rows:
            logits = functional_call(model, weights, (tokens[None],))[0]
            found.append((logits[targets >= 0], targets[targets >= 0]))
    return found


def mean_loss(of: Subject, loss: TextLoss, point: Tensor) -> Tensor:
    terms = [
        z.exp().sum().log() - z[y]
        for rows, wanted in logits_of(of, loss, point)
        for z, y in zip(rows, wanted, strict=True)
    ]
    return torch.stack(terms).mean()


def dense_hessian(of: Subject, loss: TextLoss) -> Tensor:
    return torch.autograd.functional.hessian(lambda point: mean_loss(of, loss, point), loss.point, vectorize=True)


def dense_gauss_newton(of: Subject, loss: TextLoss) -> Tensor:
    """The explicit sum of J^T (diag(p) - p p^T) J over tokens."""

    def stacked(point: Tensor) -> Tensor:
        return torch.cat([logits for logits, _ in logits_of(of, loss, point)])

    jacobian = torch.autograd.functional.jacobian(stacked, loss.point, vectorize=True)
    total = torch.zeros(len(loss.point), len(loss.point), dtype=torch.float64)
    for z, j in zip(stacked(loss.point), jacobian, strict=True):
        p = z.softmax(-1)
        total += j.T @ (torch.diag(p) - torch.outer(p, p)) @ j
    return total / len(jacobian)


# -------------------- products


def test_products_are_those_of_the_exact_matrices(tmp_path: Path) -> None:
    of, loss = small(tmp_path)
    assert len(loss.point) == N_HIDDEN
    unit = torch.eye(N_HIDDEN, dtype=torch.float64)
    hessian, gauss_newton = dense_hessian(of, loss), dense_gauss_newton(of, loss)
    torch.testing.assert_close(loss.hessian(unit, nothing), hessian, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss.gauss_newton(unit, nothing), gauss_newton, rtol=1e-9, atol=1e-12)
    # the two differ, and only one of them has no direction that falls
    assert float((hessian - gauss_newton).abs().max()) > 0.01
    assert float(torch.linalg.eigvalsh(hessian)[0]) < -0.01
    assert float(torch.linalg.eigvalsh(gauss_newton)[0]) > -1e-12


def test_value_and_gradient(tmp_path: Path) -> None:
    of, loss = small(tmp_path)
    point = loss.point.clone().requires_grad_()
    expected = mean_loss(of, loss, point)
    assert loss.value() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(loss.gradient(), torch.autograd.grad(expected, point)[0], rtol=1e-9, atol=1e-12)


def test_of_a_head_the_hessian_is_known(tmp_path: Path) -> None:
    """Softmax regression on fixed inputs h: H = G = mean of (diag(p) - p p^T) x h h^T."""
    of, loss = small(tmp_path, role="head")
    model, inputs, scored = of.load().model, [], []
    with model.lm_head.register_forward_pre_hook(lambda _, given: inputs.append(given[0][0].double())):
        for tokens, targets in loss.rows:
            model(tokens[None])
            scored.append(targets >= 0)
    h = torch.cat([rows[kept] for rows, kept in zip(inputs, scored, strict=True)])
    weight = of.model.tensor("lm_head.weight", torch.float64)
    expected = torch.zeros(4 * V, 4 * V, dtype=torch.float64)
    for row in h:
        p = (weight @ row).softmax(-1)
        expected += torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(row, row)) / len(h)
    unit = torch.eye(4 * V, dtype=torch.float64)
    # the inputs above are computed in float32
    torch.testing.assert_close(loss.hessian(unit, nothing), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss.gauss_newton(unit, nothing), expected, rtol=1e-4, atol=1e-6)


def test_how_rows_are_batched_changes_nothing(tmp_path: Path) -> None:
    """Padded or alone: a token weighs the same in a batch of many."""
    of, together = small(tmp_path)
    shares: list[float] = []
    losses = [TextLoss(of.load().model, together.names, together.rows, n, torch.float64) for n in (1, 20, 512)]
    vectors = torch.randn(2, N_HIDDEN, dtype=torch.float64)
    for name in ("hessian", "gauss_newton"):
        alone, some, all_at_once = (getattr(loss, name)(vectors, shares.append) for loss in losses)
        torch.testing.assert_close(some, alone, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(all_at_once, alone, rtol=1e-9, atol=1e-12)
    assert sum(shares) == pytest.approx(6)
    assert losses[0].gradient() == pytest.approx(losses[2].gradient(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "gemma-2-2b"])
def test_other_families(name: str, tmp_path: Path) -> None:
    """Grouped queries, tied heads, soft-capping: along a line the second difference of the loss is u^T H u."""
    of = subject(write_model(
        tmp_path / "model", name=name, n_query_groups=2, intermediate_size=32, padded_vocab_size=V, vocab_size=V
    ))  # fmt: skip
    loss = TextLoss(of.load().model, list(of.model.roles), some_rows(), 512, torch.float32)
    u = torch.randn(len(loss.point), generator=torch.Generator().manual_seed(0))
    u *= 0.1 / u.norm()
    form = float(u.double() @ loss.hessian(u[None], nothing)[0])
    middle, above, below = loss.value(), loss.value(loss.point + u), loss.value(loss.point - u)
    assert form == pytest.approx(above + below - 2 * middle, rel=0.05)
    slope = (loss.value(loss.point + u / 10) - loss.value(loss.point - u / 10)) * 5
    assert float(u.double() @ loss.gradient()) == pytest.approx(slope, rel=0.05)


def test_the_model_stays_as_it_was(tmp_path: Path) -> None:
    of, loss = small(tmp_path)
    before = {name: value.clone() for name, value in of.load().model.state_dict().items()}
    loss.hessian(torch.ones(1, N_HIDDEN), nothing)
    loss.value(loss.point + 1)
    assert all((value == before[name]).all() for name, value in of.load().model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in of.load().model.parameters())


# -------------------- the analysis


def test_eigenvalues_and_trace_are_those_of_the_exact_hessian(tmp_path: Path) -> None:
    of = subject(write_model(tmp_path / "model", **WITH_TEXT), texts=TEXTS[:1], limit=1)
    names = [name for name, role in of.model.roles.items() if role == "hidden"]
    loss = TextLoss(of.load().model, names, of.text().rows, 512, torch.float64)
    assert loss.value() == pytest.approx(of.text().loss(of.load().model, 512, torch.device("cpu")), rel=1e-6)
    asked = Curvature(steps=N_HIDDEN, tolerance=1e-8, eigenvalues=4, probes=200, max_tokens=0, dtype="float64")
    rows = [row for part in asked.parts(of) for row in asked.measure(of, part, nothing)]
    assert {row["point"] for row in rows} == {"model"}
    numbers = asked.summary(rows)
    for kind in ("hessian", "gauss_newton"):
        # products are compared with the exact matrices above
        dense = getattr(loss, kind)(torch.eye(N_HIDDEN, dtype=torch.float64), nothing)
        exact = torch.linalg.eigvalsh(dense).flip(0)
        own = [row for row in rows if row["kind"] == kind]
        top = [row["value"] for row in own if row.get("end") == "largest"]
        assert top == pytest.approx(exact[:4].tolist(), rel=1e-7)
        if kind == "hessian":
            assert numbers["most_negative/hessian/model"] == pytest.approx(float(exact[-1]), rel=1e-7)
        (trace,) = [row for row in own if row["quantity"] == "trace"]
        assert abs(trace["value"] - exact.sum()) < 4 * trace["stderr"]
        spread = (2 * ((dense**2).sum() - (dense.diag() ** 2).sum()) / 200) ** 0.5
        assert trace["stderr"] == pytest.approx(float(spread), rel=0.2)
    assert numbers["mean_eigenvalue/hessian/model"] == numbers["trace/hessian/model"] / N_HIDDEN


def test_a_small_update_costs_what_the_quadratic_model_says(tmp_path: Path) -> None:
    """The error of second order falls with the cube of the step, that of first order with its square."""
    of, loss = small(tmp_path)
    update = torch.randn(N_HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.03
    along = quadratic_along(loss, update, nothing)
    hessian, gauss_newton = dense_hessian(of, loss), dense_gauss_newton(of, loss)
    assert along.hessian == pytest.approx(float(update @ hessian @ update), rel=1e-9)
    assert along.gauss_newton == pytest.approx(float(update @ gauss_newton @ update), rel=1e-9)
    errors = {
        order: [abs(loss.value(loss.point + t * update) - along.start - along.rise(t, curvature)) for t in (0.02, 0.01)]
        for order, curvature in ((1, 0.0), (2, along.hessian))
    }
    for order, (wide, near) in errors.items():
        assert wide / near == pytest.approx(2 ** (order + 1), rel=0.1)


def test_an_update_at_its_base(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", **WITH_TEXT)
    model = write_model(tmp_path / "model", 1, base=base, scale=0.01, **WITH_TEXT)
    of = subject(model, base, TEXTS[:1])
    asked = Curvature(steps=60, eigenvalues=2, probes=4, max_tokens=100, dtype="float64")
    rows = [row for part in asked.parts(of) for row in asked.measure(of, part, nothing)]
    numbers = asked.summary(rows)
    asked_on = sample_rows(of.text().rows, 100, of.seed)
    whole = [
        TextLoss(of.load(files).model, list(of.model.roles), asked_on, 512, torch.float64)
        for files in (of.origin, of.model)
    ]
    assert numbers["true_rise/all"] == pytest.approx(whole[1].value() - whole[0].value(), rel=1e-9)
    assert numbers["second_order/all"] == pytest.approx(numbers["true_rise/all"], rel=0.05)
    assert abs(numbers["first_order/all"] - numbers["true_rise/all"]) > 2 * abs(
        numbers["second_order/all"] - numbers["true_rise/all"]
    )
    # with hidden ones alone, the rest stays the base's
    form = next(row for row in rows if row["quantity"] == "form" and row["moved"] == "hidden")
    assert form["n_parameters"] == N_HIDDEN
    assert numbers["along_update/hessian/hidden"] == pytest.approx(form["hessian"] / form["squared_norm"])
    assert numbers["along_over_top/hessian"] == pytest.approx(
        numbers["along_update/hessian/hidden"] / numbers["top_eigenvalue/hessian/base"]
    )
    assert [row["fraction"] for row in rows if row["quantity"] == "rise"] == [*FRACTIONS, *FRACTIONS]
    assert len(asked.figures([{"model": "model", **row} for row in rows])) == 5


def test_a_base_is_measured_once_for_all_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_model(tmp_path / "base", **WITH_TEXT)
    models = [write_model(tmp_path / f"model{i}", i, base=base, scale=0.01, **WITH_TEXT) for i in (1, 2)]
    asked = Curvature(points=("base",), kinds=("hessian",), eigenvalues=1, steps=4, probes=0, max_tokens=50)
    calls: list[int] = []
    product = TextLoss.hessian
    monkeypatch.setattr(TextLoss, "hessian", lambda *of: (calls.append(1), product(*of))[1])
    options = Options(
        {"curvature": asked}, tmp_path / "out", models=models, base=base, text=TEXTS[:1], world=WORLD, device="cpu"
    )
    folder = analyze(options)
    # four steps at the base, and for each model two products of its update
    assert len(calls) == 4 + 2 * 2
    rows = folder.read_table("curvature")
    top = [row["value"] for row in rows if row["quantity"] == "eigenvalue" and row["end"] == "largest"]
    assert len(top) == 2
    assert top[0] == top[1]


def test_of_the_base_itself_there_is_no_update(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", **WITH_TEXT)
    asked = Curvature(eigenvalues=1, steps=3, probes=0, kinds=("hessian",))
    assert asked.parts(subject(base, base, TEXTS)) == ["markov/old: eigenvalues of the hessian at the model"]
    both = Curvature(eigenvalues=1, steps=3, probes=0, kinds=("hessian",), all_texts=True)
    assert len(both.parts(subject(base, None, TEXTS))) == 2


WRONG = [
    ({"roles": ("hiden",)}, r"roles = \['hiden'\]: expected at least one of all, hidden"),
    ({"kinds": ()}, r"kinds = \[\]: expected at least one of hessian, gauss_newton"),
    ({"probes": -1}, "probes = -1: expected at least 0"),
    ({"eigenvalues": 40}, "eigenvalues = 40: expected fewer than steps = 40"),
    ({"tolerance": 0.0}, r"tolerance = 0.0: expected above 0"),
    ({"dtype": "bfloat16"}, "dtype = 'bfloat16': expected one of float32, float64"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[next(iter(options)) for options, _ in WRONG])
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curvature(**options)


def test_what_does_not_fit_is_said_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = subject(write_model(tmp_path / "model", **WITH_TEXT), texts=TEXTS[:1])
    with pytest.raises(ValueError, match=r"roles = adapter: .*model has all, bias, embedding, head, hidden, norm"):
        Curvature(roles=("adapter",)).check(of)
    monkeypatch.setattr("lit_consistency.analysis.curvature._memory", lambda device: 1000)
    with pytest.raises(ValueError, match=r"steps = 40: vectors of 96 parameters take .* expected fewer steps"):
        Curvature().check(of)
    Curvature(eigenvalues=0).check(of)


def test_a_sample_is_whole_rows_and_the_same_for_all(tmp_path: Path) -> None:
    of = subject(write_model(tmp_path / "model", **WITH_TEXT), texts=TEXTS[:1])
    rows = of.text().rows
    taken = sample_rows(rows, 40, seed=0)
    sizes = [int((targets >= 0).sum()) for _, targets in taken]
    assert sum(sizes) >= 40 > sum(sizes) - max(sizes)
    places = [next(i for i, row in enumerate(rows) if row is one) for one in taken]
    assert places == sorted(places)
    assert len(sample_rows(rows, 0, seed=0)) == len(rows)
