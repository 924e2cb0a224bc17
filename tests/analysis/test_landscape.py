"""The line, the plane and the barriers: against losses of known shape, and against models put together by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lit_consistency.analysis.barriers import Barriers, barriers
from lit_consistency.analysis.core.losses import TextLoss
from lit_consistency.analysis.core.run import Options, analyze
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.weights import weights_put_back, write_mixture
from lit_consistency.analysis.landscape import Landscape
from lit_consistency.analysis.linalg.lines import height_over_chord, second_difference
from lit_consistency.analysis.plane import Plane, geometry
from lit_consistency.inference.load import load_model
from lit_consistency.model import load_weights
from lit_consistency.stats.intervals import ratio
from tests.analysis.models import TEXTS, WORLD, nothing, subject, write_model

LIMIT = 6
VOCABULARY = {"padded_vocab_size": 384, "vocab_size": 378}  # all tokens of the texts


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and two models of it."""
    place = tmp_path_factory.mktemp("models")
    base = write_model(place / "base", **VOCABULARY)
    finetuned = [write_model(place / name, i, base=base, scale=0.1, **VOCABULARY) for i, name in ((1, "a"), (2, "b"))]
    return [base, *finetuned]


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().view(torch.int32).clone() for name, parameter in model.named_parameters()}


def quadratic(monkeypatch: pytest.MonkeyPatch, center: Path, power: int = 1) -> None:
    """In place of a text's loss the squared distance of the weights from those of a model (to a power), in float64."""
    middle = load_weights(center)

    def loss(of: Subject, name: str) -> TextLoss:
        there = of.load().model.state_dict()
        distance = sum(float((there[key].double() - middle[key].double()).square().sum()) for key in middle)
        return TextLoss(ratio([distance**power / 2] * 2))

    monkeypatch.setattr("lit_consistency.analysis.core.losses.text_loss", loss)


def distance2(one: Path, two: Path) -> float:
    first, second = load_weights(one), load_weights(two)
    return sum(float(((first[k].double() - second[k].double()) ** 2).sum()) for k in first)


# -------------------- the line


def test_the_line_through_a_quadratic(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """About the base it is t^2 |W - W_0|^2 / 2: change and curvature follow from the distance."""
    base, model = folders[:2]
    quadratic(monkeypatch, base)
    of, analysis = subject(model, base, TEXTS[:1]), Landscape(points=9)
    rows = [row for part in analysis.parts(of) for row in analysis.measure(of, part, nothing)]
    whole = distance2(base, model)
    for row in rows:
        assert row["nats_per_token"] == pytest.approx(row["t"] ** 2 * whole / 2, rel=1e-5)
    numbers = analysis.summary(rows)
    assert numbers["change/markov/old"] == pytest.approx(whole / 2, rel=1e-5)
    assert numbers["curvature/markov/old"] == pytest.approx(whole, rel=1e-5)
    assert numbers["lowest_t/markov/old"] == 0
    assert numbers["barrier/markov/old"] == 0  # convex


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_the_ends_are_the_models_own_evaluation(folders: list[Path], precision: str, tmp_path: Path) -> None:
    """As evaluate measures a model by itself, freshly loaded: every number is the same bit for bit."""
    base, model = folders[:2]
    options = Options(
        {"landscape": Landscape(-1, 1, 2, metric=True)}, tmp_path, model, base=base, text=TEXTS, limit=LIMIT,
        world=WORLD, precision=precision, batch_tokens=512, device="cpu",
    )  # fmt: skip
    rows = analyze(options).read_table("landscape")
    of = subject(model, base, TEXTS, limit=LIMIT)
    for t, folder in ((0, base), (1, model)):
        fresh = load_model(folder, "cpu", precision)
        for name in TEXTS:
            values = of.text(name).measure(fresh.model, 512, fresh.device).estimates()
            (row,) = [row for row in rows if row["t"] == t and row["text"] == name]
            assert (row["metric"], row["value"]) == ("kl", values["kl"].value)
            own = values["nats_per_token"]
            assert (row["nats_per_token"], row["nats_per_token_low"]) == (own.value, own.low)
            assert row["nats_per_token"] == of.text(name).loss(fresh.model, 512, fresh.device)


def test_a_point_between_is_the_model_put_together_by_hand(folders: list[Path]) -> None:
    """A state dict is mixed in numpy and loaded; the items of the text are scored one by one by plain cross-entropy."""
    base, model = folders[:2]
    of = subject(model, base, TEXTS[:1], limit=LIMIT)
    (row,) = Landscape().measure(of, "t = 1.4", nothing)
    first, second = load_weights(base), load_weights(model)
    mixed = {k: torch.from_numpy(-0.4 * first[k].double().numpy() + 1.4 * second[k].double().numpy()) for k in first}
    fresh = load_model(base, "cpu").model
    fresh.load_state_dict({key: value.float() for key, value in mixed.items()})
    nll, n = 0.0, 0
    for tokens, targets in of.text().rows:
        nll += float(nn.functional.cross_entropy(fresh(tokens[None])[0], targets, reduction="sum"))
        n += int((targets >= 0).sum())
    assert row["nats_per_token"] == pytest.approx(nll / n, rel=1e-5)


def test_the_model_is_as_it_was(folders: list[Path]) -> None:
    base, model, other = folders[:3]
    of = subject(model, base, TEXTS[:1], (other,), LIMIT)
    before = bits(of.load().model)
    analyses = [(Landscape(), "t = -2.0"), (Plane(2, 0.5), "row 1"), (Barriers(3), "base to a")]
    for analysis, part in analyses:
        analysis.measure(of, part, nothing)
        after = bits(of.load().model)
        assert all(torch.equal(after[name], before[name]) for name in before), part


def test_the_model_is_as_it_was_after_an_error(folders: list[Path]) -> None:
    model = load_model(folders[0], "cpu").model
    before = bits(model)

    def interrupted() -> None:
        with weights_put_back(model):
            write_mixture(model, [subject(folders[1]).model], [1.0])
            assert not torch.equal(bits(model)["lm_head.weight"], before["lm_head.weight"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    after = bits(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_zero_and_one_are_on_every_line() -> None:
    assert Landscape().places == [round(-2 + 0.2 * i, 1) for i in range(21)]
    assert Landscape(-0.5, 1.2, 3).places == [-0.5, 0.0, 0.35, 1.0, 1.2]


def test_heights_and_second_differences() -> None:
    t = np.array([0, 0.25, 0.5, 1])
    assert height_over_chord(t, np.array([1.0, 5, 3, 3])) == 5 - 1.5
    assert height_over_chord(t, t**2) == 0
    assert height_over_chord(t, np.array([1.0, math.nan, 3, 3])) == 1
    assert math.isnan(height_over_chord(t, np.array([math.nan, 1, 1, 1])))
    for at in t[1:-1]:  # exact for parabolas, also where points are unevenly spaced
        assert second_difference(t, 3 * t**2 - t + 2, at) == pytest.approx(6)
    assert math.isnan(second_difference(t, t, 0))


# -------------------- the plane


def test_the_models_stand_where_their_distances_put_them(folders: list[Path]) -> None:
    base, one, two = folders[:3]
    of = subject(two, base, TEXTS, (one,))
    where = geometry(of.origin, *of.models)
    for (x, y), (a, b) in (((0, 1), (base, one)), ((0, 2), (base, two)), ((1, 2), (one, two))):
        between = math.dist(where.places[x], where.places[y])
        assert between == pytest.approx(math.sqrt(distance2(a, b)), rel=1e-9)
    for place, expected in zip(where.places, np.eye(3), strict=True):
        assert where.shares(*place) == pytest.approx(list(expected), abs=1e-12)


def test_a_quadratic_in_the_plane_is_a_circular_bowl(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """About the second model: half the squared distance on the picture, at every point of the grid."""
    base, one, two = folders[:3]
    quadratic(monkeypatch, two)
    of, analysis = subject(two, base, TEXTS[:1], (one,)), Plane(points=4)
    rows = [row for part in analysis.parts(of) for row in analysis.measure(of, part, nothing)]
    center = geometry(of.origin, *of.models).places[2]
    assert len(rows) == 3 + 16
    for row in rows:
        expected = math.dist((row["x"], row["y"]), center) ** 2 / 2
        assert row["nats_per_token"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert [row["at"] for row in rows[:3]] == ["base", "a", "b"]
    numbers = analysis.summary(rows)
    assert numbers["distance/first"] == pytest.approx(math.sqrt(distance2(base, one)))
    assert numbers["distance/second"] == pytest.approx(math.sqrt(distance2(base, two)))
    first, second = (
        torch.cat([(load_weights(f)[k] - load_weights(base)[k]).double().flatten() for k in load_weights(base)])
        for f in (one, two)
    )
    assert numbers["cosine"] == pytest.approx(float(torch.cosine_similarity(first, second, dim=0)), abs=1e-6)


def test_the_places_of_the_models_are_the_models(folders: list[Path]) -> None:
    base, one, two = folders[:3]
    of = subject(two, base, TEXTS[:1], (one,), LIMIT)
    rows = Plane().measure(of, "models", nothing)
    for row, folder in zip(rows, (base, one, two), strict=True):
        fresh = load_model(folder, "cpu")
        assert row["nats_per_token"] == of.text().loss(fresh.model, 512, fresh.device)


# -------------------- barriers


def test_a_convex_loss_has_no_barrier_and_its_negative_has_one(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, one, two = folders[:3]
    of, analysis = subject(two, base, TEXTS[:1], (one,)), Barriers(5)
    quadratic(monkeypatch, base, 2)
    rows = [row for part in analysis.parts(of) for row in analysis.measure(of, part, nothing)]
    assert set(barriers(rows, TEXTS[0]).values()) == {0.0}
    assert set(barriers(rows, TEXTS[0])) == {("base", "a"), ("base", "b"), ("a", "b")}
    # the root of a square is |x|, concave on no line; minus a square lies d^2 / 8 above its chord in the middle
    flipped = [{**row, "nats_per_token": -math.sqrt(2 * float(row["nats_per_token"])) / 2} for row in rows]
    heights = barriers(flipped, TEXTS[0])
    for pair, ends in ((("base", "a"), (base, one)), (("a", "b"), (one, two))):
        assert heights[pair] == pytest.approx(distance2(*ends) / 8, rel=1e-4)
    numbers = analysis.summary(flipped)
    assert numbers["barrier/markov/old"] == pytest.approx(sum(heights.values()) / 3)
    assert numbers["barrier_max/markov/old"] == max(heights.values())
    assert analysis.summary(rows)["instability/markov/old"] > 0  # its ends differ


def test_figures_of_all_three(folders: list[Path], tmp_path: Path) -> None:
    base, one, two = folders[:3]
    what = {"landscape": Landscape(-1, 1, 3), "plane": Plane(3), "barriers": Barriers(3)}
    options = Options(
        what, tmp_path, base=base, models=(one, two), text=TEXTS, limit=2, world=WORLD, batch_tokens=512, device="cpu"
    )
    folder = analyze(options)
    page = (folder.path / "index.html").read_text(encoding="utf-8")
    for title in ("Line: markov/old", "Plane: markov/new", "Barriers: markov/old", "Lines between models: markov/new"):
        assert title in page
    assert folder.numbers()["plane/cosine"] == pytest.approx(0, abs=0.05)  # two independent updates
    assert len(folder.read_table("barriers")) == 3 * 3 * 2


# -------------------- mistakes


def test_what_cannot_be_asked_is_refused(folders: list[Path], tmp_path: Path) -> None:
    base, one, two = folders[:3]
    wide = write_model(tmp_path / "wide", n_embd=64, **VOCABULARY)
    with pytest.raises(ValueError, match=r"low = 1, high = -1: expected two numbers, low < high"):
        Landscape(1, -1)
    with pytest.raises(ValueError, match=r"models: .* alone; expected two models beside the base"):
        Plane().check(subject(one, base, TEXTS))
    with pytest.raises(ValueError, match=r"lie on one line with the base"):
        Plane().check(subject(base, base, TEXTS, (one,)))
    with pytest.raises(ValueError, match=r"alone; expected two models, or one and its base"):
        Barriers().check(subject(one, None, TEXTS))
    with pytest.raises(ValueError, match=r"is \[384, 64\] in .*wide and \[384, 32\] in .*base; expected one shape"):
        Barriers().check(subject(wide, base, TEXTS))
    with pytest.raises(ValueError, match=r"margin = -1: expected a number of at least 0"):
        Plane(margin=-1)
    with pytest.raises(ValueError, match=r"points = 2: expected at least 3"):
        Barriers(points=2)
    assert Plane().check(subject(two, base, TEXTS, (one,))) is None
