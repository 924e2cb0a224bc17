"""Perturbations: against sizes and losses known in closed form, and against a state dict changed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_consistency.analysis.core.losses import TextLoss
from lit_consistency.analysis.core.perturbed import by_draw, crossed_figures, rises
from lit_consistency.analysis.core.run import Options, analyze
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.weights import move
from lit_consistency.analysis.linalg.directions import (
    KINDS,
    frobenius_norm,
    max_norm,
    operator_norm,
    random_direction,
)
from lit_consistency.analysis.perturbations import Draw, Perturbations, unit_size
from lit_consistency.inference.load import load_model
from lit_consistency.model import load_weights
from lit_consistency.records.provenance import read_provenance
from lit_consistency.records.tables import Row
from lit_consistency.stats.intervals import ratio
from tests.analysis.models import TEXTS, WORLD, nothing, subject, write_model

LIMIT = 6
VOCABULARY = {"padded_vocab_size": 384, "vocab_size": 378, "n_layer": 1}
SHAPES = [(24, 8), (8, 24), (16, 16)]


def trained_from(folder: Path, base: Path, optimizer: str, seed: int) -> Path:
    """A model with a random update and the provenance of a finetuning."""
    write_model(folder, seed, base=base, scale=0.05, **VOCABULARY)
    said = read_provenance(folder)
    assert said is not None
    replace(said, optimizer=optimizer, base_hash=subject(base).model.hash).write(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base of AdamW, and finetunings of it by AdamW and by Muon."""
    place = tmp_path_factory.mktemp("models")
    base = write_model(place / "base", **VOCABULARY)
    tunings = [trained_from(place / name, base, name, i) for i, name in enumerate(("AdamW", "Muon"), 1)]
    return [base, *tunings]


def drawn(kind: str, shape: tuple[int, int], seed: int) -> torch.Tensor:
    return random_direction(kind, shape, torch.Generator().manual_seed(seed))


# -------------------- directions


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_direction_has_norm_one_and_its_own_shape(kind: str, shape: tuple[int, int]) -> None:
    direction = drawn(kind, shape, 0)
    assert direction.shape == shape
    assert float(np.linalg.norm(direction.numpy())) == pytest.approx(1, abs=1e-6)
    values = np.linalg.svd(direction.numpy(), compute_uv=False)
    if kind == "orthogonal":  # all singular values are equal
        np.testing.assert_allclose(values, 1 / math.sqrt(min(shape)), rtol=1e-5)
    if kind == "sign":  # |D|_F^2 = m n s^2
        s = direction.abs().max()
        assert float(s) == pytest.approx(1 / math.sqrt(shape[0] * shape[1]), rel=1e-6)
        assert bool((direction.abs() == s).all())
        assert 0.3 < float((direction > 0).float().mean()) < 0.7
    if kind != "orthogonal":
        assert values.max() > 1.2 * values.min()


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_have_the_same_second_moment(kind: str) -> None:
    """E[vec D vec D^T] = I / (m n): what makes all of them alike to second order."""
    n = 6000
    draws = torch.stack([drawn(kind, (4, 3), seed).flatten() for seed in range(n)]).double()
    moment = draws.T @ draws / n
    # products of two entries have a spread of at most about 2 / (m n) around their means
    torch.testing.assert_close(moment, torch.eye(12, dtype=torch.float64) / 12, rtol=0, atol=5 * 2 / 12 / math.sqrt(n))
    assert float(draws.mean(0).abs().max()) < 5 / math.sqrt(12 * n)


@pytest.mark.parametrize("shape", SHAPES)
def test_norms_are_those_of_numpy(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    dense = matrix.double().numpy()
    assert operator_norm(matrix) == pytest.approx(np.linalg.norm(dense, 2), rel=1e-12)
    assert max_norm(matrix) == np.abs(dense).max()
    assert frobenius_norm(matrix) == pytest.approx(np.linalg.norm(dense), rel=1e-12)
    assert operator_norm(torch.zeros(shape)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_matched_in_their_norm(kind: str) -> None:
    weight, direction = torch.randn(24, 8, generator=torch.Generator().manual_seed(2)), drawn(kind, (24, 8), 3)
    native = Draw("together", kind, 0, None).native
    moved = torch.empty_like(weight)
    for norm, measured, expected in (
        ("frobenius", frobenius_norm, 0.1 * frobenius_norm(weight)),
        ("native", native, 0.1 * native(weight)),
        ("absolute", frobenius_norm, 0.1 * math.sqrt(24)),
    ):
        reached = move([moved], [weight], [direction], [0.1 * unit_size(norm, weight, direction, native)])
        change = moved.double() - weight.double()
        assert measured(change) == pytest.approx(expected, rel=1e-4)
        assert reached == pytest.approx(float(change.norm() / weight.double().norm()), rel=1e-9)
    # an update that is nothing stays nothing
    zero = torch.zeros_like(weight)
    assert unit_size("native", weight, zero, max_norm) == 0
    assert move([moved], [weight], [zero], [1.0]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_rise_of_a_linear_regression_is_half_a_trace(kind: str) -> None:
    """loss = |(W - W*) X|_F^2 / (2 N) has the Hessian I x C, C = X X^T / N: at W* D makes r^2 tr C / (2 n)."""
    generator = torch.Generator().manual_seed(0)
    rows, columns, n = 6, 4, 3000
    x = torch.randn(columns, 50, generator=generator, dtype=torch.float64) * torch.tensor([[3.0], [1], [0.5], [0.1]])
    covariance = x @ x.T / 50
    best = torch.randn(rows, columns, generator=generator)
    radius = 0.1
    size = radius * unit_size("frobenius", best, best, frobenius_norm)
    moved = best.clone()
    losses = []
    for seed in range(n):
        move([moved], [best], [drawn(kind, (rows, columns), seed)], [size])
        losses.append(float((((moved - best).double() @ x) ** 2).sum()) / 100)
    expected = size**2 * float(covariance.trace()) / (2 * columns)
    error = np.std(losses) / math.sqrt(n)
    assert np.mean(losses) == pytest.approx(expected, abs=4 * error)
    assert error < 0.02 * expected


# -------------------- the analysis


def test_the_rise_is_that_of_a_state_dict_changed_by_hand(folders: list[Path]) -> None:
    """Every matrix of the blocks, q, k and v apart, by numpy; the text through a freshly loaded model."""
    of = subject(folders[0], texts=TEXTS, limit=LIMIT)
    analysis = Perturbations(draws=2, radii=[0.1], mirrored=False)
    rows = analysis.measure(of, "sign 1 of together", nothing)
    weights = {name: tensor.numpy().copy() for name, tensor in load_weights(folders[0]).items()}
    fresh = load_model(folders[0], "cpu")
    draw = Draw("together", "sign", 1, None)
    for norm, name in product(("frobenius", "native"), TEXTS):
        changed = {key: array.copy() for key, array in weights.items()}
        for matrix in of.model.matrices:
            if matrix.role == "hidden":
                own = changed[matrix.parameter][matrix.start : matrix.stop]
                signs = np.sign(draw.direction(of, matrix).numpy())
                s = np.sqrt((own**2).mean()) if norm == "frobenius" else np.abs(own).max()
                own += 0.1 * s * signs
        start = of.text(name).loss(fresh.model, 512, fresh.device)
        fresh.model.load_state_dict({key: torch.from_numpy(array) for key, array in changed.items()})
        expected = of.text(name).loss(fresh.model, 512, fresh.device) - start
        fresh.model.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()})
        (row,) = [row for row in rows if row["norm"] == norm and row["text"] == name]
        assert row["rise"] == pytest.approx(expected, rel=1e-3)
        assert row["nats_per_token"] - row["rise"] == pytest.approx(start, rel=1e-6)
        assert row["rise_low"] < row["rise"] < row["rise_high"]
    assert {round(row["relative_norm"], 6) for row in rows if row["norm"] == "frobenius"} == {0.1}


def test_of_an_even_quadratic_every_kind_makes_the_same_rise(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """loss = h |W - W_0|^2 / 2 of all hidden matrices: exactly h gamma^2 |W_0|^2 / 2, for every draw."""
    start = load_weights(folders[0])

    def loss(of: Subject, name: str) -> TextLoss:
        now = of.load().model.state_dict()
        return TextLoss(
            ratio([3 * sum(float((now[k].double() - start[k].double()).square().sum()) for k in start)] * 2)
        )

    monkeypatch.setattr("lit_consistency.analysis.perturbations.text_loss", loss)
    of = subject(folders[0], texts=TEXTS[:1])
    analysis = Perturbations(draws=2, radii=[0.05, 0.1], norms=["frobenius"], own=[str(folders[1])])
    rows = [row for part in analysis.parts(of) for row in analysis.measure(of, part, nothing)]
    hidden = [m for m in of.model.matrices if m.role == "hidden"]
    whole = sum(frobenius_norm(of.model.block(m)) ** 2 for m in hidden)
    assert len(rows) == (3 * 2 * 2 + 1) * 2
    for row in rows:
        assert row["rise"] == pytest.approx(3 * row["radius"] ** 2 * whole, rel=1e-4)
    numbers = analysis.summary(rows)
    assert numbers["rise/sign"] == pytest.approx(0.03 * whole, rel=1e-4)
    assert numbers["log_rise/own"] == pytest.approx(math.log(0.03 * whole), rel=1e-4)
    assert numbers["log_ratio/sign_orthogonal"] == pytest.approx(0, abs=1e-4)
    assert numbers["rise/sign/low"] <= numbers["rise/sign"] <= numbers["rise/sign/high"]


def test_both_sides_of_a_draw_cancel_the_slope(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """loss = <G, W> + |W - W_0|^2 / 2: the mean of both sides is gamma^2 |W_0|^2 / 2, however large G is."""
    start = load_weights(folders[0])
    slope = {
        k: torch.randn(v.shape, generator=torch.Generator().manual_seed(i)) for i, (k, v) in enumerate(start.items())
    }

    def loss(of: Subject, name: str) -> TextLoss:
        change = {k: now.double() - start[k].double() for k, now in of.load().model.state_dict().items()}
        value = sum(float((100 * slope[k] * d).sum() + d.square().sum() / 2) for k, d in change.items())
        return TextLoss(ratio([value] * 2))

    monkeypatch.setattr("lit_consistency.analysis.perturbations.text_loss", loss)
    of = subject(folders[0], texts=TEXTS[:1])
    analysis = Perturbations(kinds=["sign"], draws=2, radii=[0.1], norms=["frobenius"])
    rows = [row for part in analysis.parts(of) for row in analysis.measure(of, part, nothing)]
    whole = sum(frobenius_norm(of.model.block(m)) ** 2 for m in of.model.matrices if m.role == "hidden")
    assert [(row["draw"], row["side"]) for row in rows] == [(0, 1), (0, -1), (1, 1), (1, -1)]
    assert max(abs(row["rise"]) for row in rows) > 0.05 * whole
    for value in by_draw(rows):
        assert value == pytest.approx(0.005 * whole, rel=1e-3)


def test_an_update_at_its_own_size_is_the_finetuned_model(folders: list[Path]) -> None:
    """One matrix alone, so that the radius can be that of the update itself."""
    base, model = folders[:2]
    of = subject(base, texts=TEXTS[:1], limit=LIMIT)
    matrix = next(m for m in of.model.matrices if m.kind == "mlp.fc")
    before, after = of.model.block(matrix), subject(model).model.block(matrix)
    gamma = frobenius_norm(after - before) / frobenius_norm(before)
    analysis = Perturbations(
        kinds=[], radii=[gamma], reference=gamma, norms=["frobenius"], apart="kind", own=[str(model)]
    )
    part = next(part for part in analysis.parts(of) if part.endswith("of mlp.fc"))
    (row,) = analysis.measure(of, part, nothing)
    fresh = load_model(base, "cpu")
    fresh.model.load_state_dict({**load_weights(base), matrix.parameter: after})
    assert row["nats_per_token"] == pytest.approx(of.text().loss(fresh.model, 512, fresh.device), rel=1e-6)
    assert row["relative_norm"] == pytest.approx(gamma, rel=1e-5)


def test_the_model_is_as_it_was_bit_for_bit(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    of = subject(folders[0], texts=TEXTS[:1], limit=LIMIT)
    model = of.load().model
    before = {name: p.detach().view(torch.int32).clone() for name, p in model.named_parameters()}
    analysis = Perturbations(draws=1, radii=[0.1, 0.3], roles=["hidden", "embedding", "head"])
    for part in analysis.parts(of):
        analysis.measure(of, part, nothing)
    assert all(torch.equal(p.view(torch.int32), before[name]) for name, p in model.named_parameters())
    monkeypatch.setattr("lit_consistency.analysis.perturbations.move", lambda moved, *_: moved[0].fill_(math.nan) / 0)
    monkeypatch.setattr("lit_consistency.analysis.perturbations.unit_size", lambda *_: 1.0)
    calls = []

    def fails(*_: object) -> TextLoss:
        calls.append(any(bool(parameter.isnan().any()) for parameter in model.parameters()))
        if len(calls) == 2:
            raise RuntimeError("memory")
        return TextLoss(ratio([1.0, 1.0]))

    monkeypatch.setattr("lit_consistency.analysis.perturbations.text_loss", fails)
    with pytest.raises(RuntimeError, match="memory"):
        analysis.measure(of, "sign 0 of together", nothing)
    assert calls == [False, True]  # it had been changed
    assert all(torch.equal(p.view(torch.int32), before[name]) for name, p in model.named_parameters())


def test_draws_are_the_same_for_all_models_and_differ_from_one_another(folders: list[Path]) -> None:
    one, two = (subject(folder) for folder in folders[:2])
    matrices = [m for m in one.model.matrices if m.role == "hidden"]
    for kind in KINDS:
        draws = [Draw("together", kind, number, None) for number in (0, 1)]
        first = draws[0].direction(one, matrices[0])
        assert torch.equal(first, draws[0].direction(two, matrices[0]))
        assert not torch.equal(first, draws[1].direction(one, matrices[0]))
        assert not torch.equal(first, draws[0].direction(one, matrices[1]))  # q and k have one shape


def test_a_group_moves_its_own_matrices_alone(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    of = subject(folders[0], texts=TEXTS[:1], limit=LIMIT)
    start = load_weights(folders[0])
    seen: dict[str, set[str]] = {}

    def loss(of: Subject, name: str) -> TextLoss:
        now = of.load().model.state_dict()
        seen.setdefault(part, set()).update(
            m.kind for m in of.model.matrices
            if not torch.equal(now[m.parameter][m.start : m.stop], start[m.parameter][m.start : m.stop])
        )  # fmt: skip
        return TextLoss(ratio([1.0, 1.0]))

    monkeypatch.setattr("lit_consistency.analysis.perturbations.text_loss", loss)
    for apart, roles in (("kind", ["hidden"]), ("role", ["hidden", "embedding", "head"])):
        analysis = Perturbations(kinds=["sign"], draws=1, radii=[0.1], apart=apart, roles=roles)  # type: ignore[arg-type]
        for part in analysis.parts(of):
            analysis.measure(of, part, nothing)
    hidden = {"attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc", "mlp.proj"}
    assert seen["sign 0 of hidden"] == hidden
    assert seen["sign 0 of together"] == {*hidden, "wte", "lm_head"}
    assert {kind: seen[f"sign 0 of {kind}"] for kind in hidden} == {kind: {kind} for kind in hidden}
    assert (seen["sign 0 of embedding"], seen["sign 0 of head"]) == ({"wte"}, {"lm_head"})


def test_the_crossed_table_of_two_bases(folders: list[Path], tmp_path: Path) -> None:
    """Updates go to the base that their provenance names; the page shows the table and the interaction."""
    base, adamw, muon = folders
    second = write_model(tmp_path / "second", 7, **VOCABULARY)
    said = read_provenance(second)
    assert said is not None
    replace(said, optimizer="Muon").write(second)
    of_second = trained_from(tmp_path / "muon2", second, "Muon", 3)
    analysis = Perturbations(draws=2, radii=[0.1, 0.2], own=[str(adamw), str(of_second)], other=[str(muon)])
    options = Options(
        {"perturbations": analysis}, tmp_path / "out", models=(base, second), text=TEXTS[:1], limit=2, world=WORLD,
        batch_tokens=512, device="cpu",
    )  # fmt: skip
    folder = analyze(options)
    rows = folder.read_table("perturbations")
    kinds = {(row["model"], row["kind"]) for row in rows if row["kind"] in ("own", "other")}
    assert kinds == {("base", "own"), ("base", "other"), ("second", "own")}
    # of updates of Muon the native norm is the operator norm, of those of AdamW the largest entry
    draws = {d.kind: d.native for d in analysis._draws(subject(base, others=(second,))) if d.update}
    assert draws == {"own": max_norm, "other": operator_norm}
    numbers = folder.read_record()["numbers"]
    mean = {kind: rise.mean for kind, rise in rises([
        row for row in rows
        if row["model"] == "base" and row["radius"] == 0.1 and row["norm"] == "native" and row["matrices"] == "together"
    ]).items()}  # fmt: skip
    assert "gaussian" not in mean  # its own norm is Frobenius'
    assert numbers["base"]["perturbations/rise_native/sign"] == pytest.approx(mean["sign"])
    page = (folder.path / "index.html").read_text(encoding="utf-8")
    assert "Models x random perturbations, native norm" in page
    assert "Models x updates, native norm" in page
    assert "second (Muon)" in page


def test_the_interaction_is_the_distance_of_two_lines() -> None:
    """Rises r^2 times a factor of model and kind: the log ratios are flat, and as far apart as the factors say."""
    factors = {("a", "sign"): 1, ("a", "orthogonal"): 2, ("b", "sign"): 6, ("b", "orthogonal"): 3}
    rows: list[Row] = [
        {"model": model, "optimizer": "AdamW", "matrices": matrices, "kind": kind, "norm": "frobenius",
         "radius": radius, "draw": draw, "side": side, "text": "old",
         "rise": factor * radius**2 * (1 + draw / 10) + 7 * side, "relative_norm": radius * factor}
        for (model, kind), factor in factors.items() for radius in (0.1, 0.2) for draw in (-1, 0, 1)
        for side in (1, -1) for matrices in ("together", "mlp.fc")
    ]  # fmt: skip
    figures = {figure.title: figure.rows for figure in crossed_figures(rows, 0.1)}
    assert list(figures) == [
        "Models x random perturbations, Frobenius norm", "sign against orthogonal, Frobenius norm",
        "Rise under sign, Frobenius norm", "Rise under orthogonal, Frobenius norm",
        "Matrices by themselves: a", "Matrices by themselves: b",
    ]  # fmt: skip
    ratios = figures["sign against orthogonal, Frobenius norm"]
    assert ratios == (("0.1", "−0.693", "0.693"), ("0.2", "−0.693", "0.693"))
    table = figures["Models x random perturbations, Frobenius norm"]
    assert table == (("a (AdamW)", "0.01", "0.02"), ("b (AdamW)", "0.06", "0.03"))
    assert figures["Matrices by themselves: b"] == (("mlp.fc", "sign", "0.06"), ("mlp.fc", "orthogonal", "0.03"))
    both = Perturbations().figures([*rows, *({**row, "text": "new", "rise": 2 * float(row["rise"])} for row in rows)])
    assert [figure.title for figure in both] == [f"{title}, {text}" for text in ("old", "new") for title in figures]
    assert both[-1].rows == (("mlp.fc", "sign", "0.12"), ("mlp.fc", "orthogonal", "0.06"))
    numbers = [Perturbations().summary([row for row in rows if row["model"] == model]) for model in "ab"]
    ratio_of = [number["log_ratio/sign_orthogonal"] for number in numbers]
    assert ratio_of[1] - ratio_of[0] == pytest.approx(math.log(4))
    sizes = [number["log_size_ratio/sign_orthogonal"] for number in numbers]
    assert sizes == pytest.approx([2 * math.log(1 / 2), 2 * math.log(2)])


MISTAKES = [
    ({"kinds": ["sine"]}, "kinds = 'sine': expected some of sign, orthogonal, gaussian"),
    ({"norms": []}, r"norms = \[\]: expected different ones, at least one"),
    ({"radii": [0.1, -1.0]}, r"radii = \[0.1, -1.0\]: expected positive numbers"),
    ({"radii": [0.2]}, r"reference = 0.1: expected one of radii = \[0.2\]"),
    ({"draws": 0}, "draws = 0: expected at least 1"),
    ({"roles": ["norm"]}, "roles = 'norm': expected some of hidden, embedding, head"),
    ({"kinds": []}, "kinds, own, other: expected at least one perturbation"),
]


@pytest.mark.parametrize(
    ("options", "message"), MISTAKES, ids=[next(iter(o)) + str(i) for i, (o, _) in enumerate(MISTAKES)]
)
def test_a_wrong_option_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Perturbations(**options)


def test_a_wrong_update_is_named(folders: list[Path], tmp_path: Path) -> None:
    base, adamw, muon = folders
    other = write_model(tmp_path / "stranger", 9, **VOCABULARY)
    of = subject(base, texts=TEXTS)
    Perturbations(own=[str(adamw)], other=[str(muon)]).check(of)
    with pytest.raises(ValueError, match=r"own = .*Muon: trained by Muon, and .*base by AdamW; expected it as other"):
        Perturbations(own=[str(muon)]).check(of)
    with pytest.raises(ValueError, match=r"other = .*AdamW: trained by AdamW.*expected it as own"):
        Perturbations(other=[str(adamw)]).check(of)
    with pytest.raises(ValueError, match=r"own = .*AdamW: was not trained from .*stranger, says its provenance"):
        Perturbations(own=[str(adamw)]).check(subject(other, texts=TEXTS))
    with pytest.raises(FileNotFoundError, match=r"own = .*nowhere: there is no such folder"):
        Perturbations(own=[str(tmp_path / "nowhere")]).check(of)
