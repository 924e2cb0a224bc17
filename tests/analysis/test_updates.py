from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_consistency.analysis.core.run import Options, analyze
from lit_consistency.analysis.linalg.changes import entrywise, intruder_dimensions, overlap
from lit_consistency.analysis.linalg.decompositions import GramSVD, KrylovSVD, gram_values
from lit_consistency.analysis.updates import VECTORS, Updates
from lit_consistency.records.tables import Row
from tests.analysis.models import WORLD, nothing, subject, write_model

FAMILIES = {
    "pythia-14m": {},  # biases, norms with biases, a head of its own
    "Llama-3.2-1B": {"n_query_groups": 2, "intermediate_size": 48},  # blocks of q, k, v of two sizes; a gated MLP
}

TOKENS = {"padded_vocab_size": 384, "vocab_size": 384}
"""As many as the tokenizer of the texts has."""


def orthonormal(m: int, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(m, n, generator=generator, dtype=torch.float64)).Q


def weights(folder: Path) -> dict[str, np.ndarray]:
    loaded = torch.load(folder / "lit_model.pth", weights_only=True)
    return {name: tensor.double().numpy() for name, tensor in loaded.items()}


def slow(base: np.ndarray, model: np.ndarray, rank: int, below: float) -> dict[str, float]:
    """Every number of a matrix from dense decompositions and Python loops."""
    change = model - base
    u0, s0, v0 = np.linalg.svd(base, full_matrices=False)
    u, _, _ = np.linalg.svd(model, full_matrices=False)
    values = np.linalg.svd(change, compute_uv=False)
    rank = min(rank, len(values))
    entries = [float(x) for row in change for x in row]
    old = [float(x) for row in base for x in row]
    n = len(entries)
    squared = math.fsum(x * x for x in entries)
    cosine = math.fsum(a * (a + x) for a, x in zip(old, entries, strict=True)) / (
        math.sqrt(math.fsum(a * a for a in old)) * float(np.linalg.norm(model))
    )
    shares = [s * s / squared for s in values]
    inside = [[float(u0[:, i] @ change @ v0[j]) ** 2 for j in range(rank)] for i in range(rank)]
    left = sum(float(np.linalg.norm(u0[:, i] @ change)) ** 2 for i in range(rank)) / squared
    right = sum(float(np.linalg.norm(change @ v0[i])) ** 2 for i in range(rank)) / squared
    m, columns = change.shape
    return {
        "frobenius": math.sqrt(squared),
        "max": max(map(abs, entries)),
        "rms": math.sqrt(squared / n),
        "sign_likeness": sum(map(abs, entries)) ** 2 / (n * squared),
        "sign_likeness_moved": sum(map(abs, entries)) ** 2 / (sum(x != 0 for x in entries) * squared),
        "base_frobenius": float(np.linalg.norm(base)),
        "relative_frobenius": math.sqrt(squared) / float(np.linalg.norm(base)),
        "cosine_distance": 1 - cosine,
        "angle": math.degrees(math.acos(cosine)),
        "moved": sum(x != 0 for x in entries) / n,
        "moved_relative": sum(abs(x) > 0.1 * abs(a) for x, a in zip(entries, old, strict=True)) / n,
        "operator": float(values[0]),
        "nuclear": float(sum(values)),
        "relative_operator": float(values[0] / s0[0]),
        "stable_rank": squared / float(values[0]) ** 2,
        "stable_rank_share": squared / float(values[0]) ** 2 / len(values),
        "svd_entropy": -sum(p * math.log(p) for p in shares) / math.log(len(values)),
        "top_energy": sum(shares[:rank]),
        "overlap_left": left,
        "overlap_right": right,
        "overlap_both": sum(map(sum, inside)) / squared,
        "overlap_left_ratio": left / (rank / m),
        "overlap_right_ratio": right / (rank / columns),
        "overlap_both_ratio": sum(map(sum, inside)) / squared / (rank * rank / n),
        "intruders": sum(max(abs(float(u[:, j] @ u0[:, i])) for i in range(len(s0))) < below for j in range(rank)),
        "spectrum_000": 1.0,
        "spectrum_100": float(values[-1] / values[0]),
    }


def rows_of(analysis: Updates, model: Path, base: Path, texts: tuple[str, ...] = ()) -> dict[str, Row]:
    of = subject(model, base, texts)
    return {str(row["block"]): row for part in analysis.parts(of) for row in analysis.measure(of, part, nothing)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_is_that_of_dense_decompositions_and_loops(family: str, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", name=family, **FAMILIES[family])
    model = write_model(tmp_path / "model", 1, family, 0.1, base, **FAMILIES[family])
    before, after = weights(base), weights(model)
    size = {"q": 32, "k": 32, "v": 32} if family == "pythia-14m" else {"q": 32, "k": 16, "v": 16}
    rows = rows_of(Updates(rank=5, intruder_below=0.8, moved_above=0.1), model, base)
    compared, unlike = 0, set()
    for name, old in before.items():
        if old.ndim != 2:
            continue
        blocks = {name: slice(None)}
        if "qkv" in name:
            edges = np.cumsum([0, *size.values()])
            blocks = {name.replace("qkv", k): slice(*edges[i : i + 2]) for i, k in enumerate(size)}
        for block, at in blocks.items():
            row = rows[block.removeprefix("transformer.").removeprefix("h.").removesuffix(".weight")]
            for number, expected in slow(old[at], after[name][at], 5, 0.8).items():
                # weights are float32, and so is their difference
                assert row[number] == pytest.approx(expected, rel=2e-6, abs=1e-7), (block, number)
            compared += 1
            unlike.add(row["intruders"])
    assert (
        compared
        == len([row for row in rows.values() if "operator" in row])
        == len(rows) - sum(old.ndim == 1 for old in before.values())
    )
    assert len(unlike) > 2  # the threshold lies among the cosines: their count is tested


def test_vectors_have_rows_of_their_own(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    model = write_model(tmp_path / "model", 1, base=base, scale=0.1)
    before, after = weights(base), weights(model)
    rows = rows_of(Updates(), model, base)
    assert rows["1.attn.qkv.bias"]["role"] == "bias"
    assert rows["ln_f.weight"]["role"] == "norm"
    for name in ("transformer.h.1.attn.qkv.bias", "transformer.ln_f.weight"):
        change = after[name] - before[name]
        row = rows[name.removeprefix("transformer.").removeprefix("h.")]
        assert row["frobenius"] == pytest.approx(math.sqrt(sum(x * x for x in change)))
        assert row["rms"] == pytest.approx(np.sqrt(np.mean(change**2)))
        assert "operator" not in row
    # MoFO's distance: every named tensor is a block, the fused matrix is three
    blocks = [
        part
        for name, old in before.items()
        for part in (np.split(after[name] - old, 3) if name.endswith("qkv.weight") else [after[name] - old])
    ]
    summary = Updates().summary(list(rows.values()))
    assert summary["rms/all"] == pytest.approx(sum(np.linalg.norm(b) / math.sqrt(b.size) for b in blocks) / len(blocks))
    everything = np.concatenate([(after[name] - old).ravel() for name, old in before.items()])
    assert summary["frobenius/all"] == pytest.approx(float(np.linalg.norm(everything)))


# -------------------- answers in closed form


def change_of(base: Tensor, change: Tensor) -> Row:
    numbers = Updates(rank=2)._spectral(base, base + change, change, 0)
    return {**entrywise(base, change, 1e-3), **numbers}


def test_a_sign_is_sign_like_and_an_orthogonal_update_is_flat() -> None:
    base = orthonormal(24, 16) @ torch.diag(torch.arange(16, 0, -1.0, dtype=torch.float64))
    sign = torch.where(torch.rand(24, 16, dtype=torch.float64) < 0.5, -0.1, 0.1)
    row = change_of(base, sign)
    assert row["sign_likeness"] == pytest.approx(1)
    assert (row["max"], row["rms"]) == (pytest.approx(0.1), pytest.approx(0.1))
    row = change_of(base, 0.2 * orthonormal(24, 16, 1))
    assert row["stable_rank"] == pytest.approx(16)
    assert (row["stable_rank_share"], row["svd_entropy"]) == (pytest.approx(1), pytest.approx(1))
    assert (row["operator"], row["nuclear"]) == (pytest.approx(0.2), pytest.approx(3.2))
    assert (row["relative_operator"], row["top_energy"]) == (pytest.approx(0.2 / 16), pytest.approx(2 / 16))
    assert [row[f"spectrum_{p}"] for p in ("000", "050", "100")] == pytest.approx([1, 1, 1])


def test_an_update_of_rank_one_in_the_bases_first_direction() -> None:
    u, v = orthonormal(24, 16), orthonormal(16, 16, 1)
    base = u @ torch.diag(torch.arange(16, 0, -1.0, dtype=torch.float64)) @ v.T
    row = change_of(base, 0.5 * torch.outer(u[:, 0], v[:, 0]))
    for number in ("stable_rank", "top_energy", "overlap_left", "overlap_right", "overlap_both"):
        assert row[number] == pytest.approx(1, abs=1e-6), number
    assert row["overlap_both_ratio"] == pytest.approx(24 * 16 / 4)
    assert row["svd_entropy"] == pytest.approx(0, abs=1e-9)
    assert row["nuclear"] == pytest.approx(0.5, abs=1e-6)  # what 15 eigenvalues of the Gram matrix add by rounding
    assert row["intruders"] == 0


def test_a_strong_new_direction_is_the_one_intruder() -> None:
    """Columns of W_0 span 8 of 24 rows; the new left direction is orthogonal to all, and becomes the first of W."""
    directions = orthonormal(24, 9)
    base = directions[:, :8] @ torch.diag(torch.arange(8, 0, -1.0, dtype=torch.float64)) @ orthonormal(8, 8, 1)
    change = 50 * torch.outer(directions[:, 8], orthonormal(8, 8, 2)[:, 0])
    found = [intruder_dimensions(GramSVD(base), GramSVD(base + s * change), 3, 0.5) for s in (0.0, 1.0)]
    assert found == [0, 1]
    assert overlap(change, GramSVD(base).left(8), GramSVD(base).right(8))["overlap_left"] == pytest.approx(0, abs=1e-12)
    assert intruder_dimensions(GramSVD(0 * base), GramSVD(base), 3, 0.5) == 3


def test_the_cosine_distance_of_a_tiny_update_keeps_its_digits() -> None:
    """An update of relative size t across W_0 turns it by arc tan t; the plain formula has no digit left at 1e-9."""
    base = torch.zeros(4, 4, dtype=torch.float64)
    base[0, 0] = 3.0
    for t in (1e-2, 1e-6, 1e-9):
        change = torch.zeros(4, 4, dtype=torch.float64)
        change[1, 2] = 3 * t
        numbers = entrywise(base, change, 0.0)
        assert numbers["cosine_distance"] == pytest.approx(1 - 1 / math.sqrt(1 + t * t) if t == 1e-2 else t * t / 2)
        assert numbers["angle"] == pytest.approx(math.degrees(math.atan(t)))
        assert (numbers["moved"], numbers["sign_likeness"], numbers["sign_likeness_moved"]) == (1 / 16, 1 / 16, 1)
    assert entrywise(base, -2 * base, 0.0)["cosine_distance"] == pytest.approx(2)
    assert math.isnan(entrywise(0 * base, change, 0.0)["cosine_distance"])


def test_what_did_not_move_has_no_direction(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", **TOKENS)
    for row in rows_of(Updates(), base, base, ("markov/old",)).values():
        assert (row["frobenius"], row["relative_frobenius"], row["moved"], row["cosine_distance"]) == (0, 0, 0, 0)
        assert math.isnan(row["sign_likeness"])
        if "operator" in row:
            assert math.isnan(row["stable_rank"])
            assert (row["intruders"], row["weighted"]) == (0, 0)
        assert not any(math.isinf(value) for value in row.values() if isinstance(value, float))


def test_pictures_leave_out_what_has_no_numbers(tmp_path: Path) -> None:
    """LoRA leaves embedding and head as they are; a model may have moved nowhere, or be too large for whole spectra."""
    base = write_model(tmp_path / "base")
    model = write_model(tmp_path / "model", 1, base=base, scale=0.1)
    shape = ("Stable rank of updates, over the full rank", "Sign-likeness of updates")
    for of, analysis, titles in (
        (model, Updates(exact_up_to=0), (*shape, "Size of the update over the layers")),
        (base, Updates(), ("Size of the update over the layers",)),
    ):
        rows: list[Row] = [{"model": "one", "step": 1, **row} for row in rows_of(analysis, of, base).values()]
        assert tuple(figure.title for figure in analysis.figures(rows)) == titles
        others: list[Row] = [{**row, "model": "two"} for row in rows]
        assert tuple(figure.title for figure in analysis.figures(rows + others)) == titles


# -------------------- decompositions


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (64, 64)])
def test_the_gram_matrix_gives_the_dense_svd(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_consistency.analysis.linalg.decompositions.CHUNK", 1000)  # many chunks
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    svd = GramSVD(matrix)
    torch.testing.assert_close(svd.values, values, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gram_values(matrix), values, rtol=1e-10, atol=1e-10)
    # vectors have no sign: products of the projections are compared
    torch.testing.assert_close(svd.left(5) @ svd.left(5).T, u[:, :5] @ u[:, :5].T, rtol=0, atol=1e-9)
    torch.testing.assert_close(svd.right(5) @ svd.right(5).T, vh[:5].T @ vh[:5], rtol=0, atol=1e-9)
    other = torch.randn(shape[0], 3, dtype=torch.float64)
    torch.testing.assert_close(svd.left_cosines(other).abs(), (u.T @ other).abs(), rtol=0, atol=1e-9)


def test_of_a_matrix_of_low_rank_only_real_directions_are_given() -> None:
    for shape in ((200, 50), (50, 200)):
        m, n = shape
        matrix = (
            orthonormal(m, 3) @ torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)) @ orthonormal(n, 3).T
        )
        svd = GramSVD(matrix)
        assert (svd.rank, svd.left(10).shape, svd.right(10).shape) == (3, (m, 3), (n, 3))
        assert float(gram_values(matrix).sum()) == pytest.approx(6, rel=1e-6)
        krylov = KrylovSVD(matrix, 10)
        torch.testing.assert_close(krylov.values[:3], torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
        assert float(krylov.values[3:].max()) < 1e-12


def test_the_krylov_subspace_finds_the_top_of_a_spectrum() -> None:
    """Exact where values fall; of a Gaussian matrix, the worst that there is, the first within 1%, never too large."""
    falling = orthonormal(300, 200) @ torch.diag(0.95 ** torch.arange(200, dtype=torch.float64)) @ orthonormal(200, 200)
    krylov, dense = KrylovSVD(falling, 5), torch.linalg.svd(falling, full_matrices=False)
    torch.testing.assert_close(krylov.values, dense.S[:5], rtol=1e-8, atol=0)
    torch.testing.assert_close(krylov.left(5).T @ falling @ krylov.right(5), torch.diag(dense.S[:5]), rtol=0, atol=1e-8)
    gaussian = torch.randn(600, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact, found = torch.linalg.svdvals(gaussian)[:5], KrylovSVD(gaussian, 5).values
    assert bool((found <= exact * (1 + 1e-12)).all())
    assert float(found[0] / exact[0]) > 0.99


def test_beyond_exact_up_to_the_top_is_the_same_and_the_rest_is_left_out(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    model = write_model(tmp_path / "model", 1, base=base, scale=0.1)
    exact, top = (rows_of(Updates(rank=4, exact_up_to=n), model, base)["0.mlp.fc"] for n in (4096, 31))
    assert (exact["spectrum_by"], top["spectrum_by"]) == ("gram", "krylov")
    # the subspace holds the whole matrix here
    for number in ("operator", "relative_operator", "stable_rank", "top_energy", "overlap_both", "frobenius"):
        assert top[number] == pytest.approx(exact[number], rel=1e-6), number
    for number in ("nuclear", "svd_entropy", "intruders", "spectrum_050"):
        assert not math.isnan(exact[number])
        assert math.isnan(top[number]), number


# -------------------- on inputs


def test_on_inputs_the_numbers_are_those_of_outputs_one_by_one(tmp_path: Path) -> None:
    """D x of every input of every layer, seen by hooks of this test; an embedding's rows by its tokens."""
    base = write_model(tmp_path / "base", **TOKENS)
    model = write_model(tmp_path / "model", 1, base=base, scale=0.1, **TOKENS)
    of = subject(model, base, ("markov/old",), limit=6)
    text = of.text()
    analysis = Updates(positions=text.n_tokens)
    rows = {str(row["block"]): row for part in analysis.parts(of) for row in analysis.measure(of, part, nothing)}
    loaded = of.load(of.origin).model
    seen: dict[str, list[Tensor]] = {}
    for name, module in loaded.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, x, name=name: seen.setdefault(name, []).append(x[0][0].double()))
    for tokens, _ in text.rows:
        loaded(tokens[None])
    for matrix in of.model.matrices:
        if matrix.role == "embedding":
            inputs = [torch.eye(384, dtype=torch.float64)[t] for tokens, _ in text.rows for t in tokens]
        else:
            inputs = list(torch.cat(seen[matrix.module]))
        old, new = (files.block(matrix, torch.float64) for files in (of.origin, of.model))
        change = (new - old).T if matrix.role == "embedding" else new - old
        old = old.T if matrix.role == "embedding" else old
        outputs = [change @ x for x in inputs]
        row = rows[matrix.name]

        def mean(values: list[Tensor]) -> float:
            return float(sum(values)) / len(values)

        moved = mean([y.square().sum() for y in outputs])
        before = mean([(old @ x).square().sum() for x in inputs])
        size = mean([x.square().sum() for x in inputs]) / len(inputs[0])
        expected = {
            "weighted": math.sqrt(moved),
            "relative_weighted": math.sqrt(moved / before),
            "input_alignment": math.sqrt(moved / (float(change.square().sum()) * size)),
            "operator_bound_used": mean([y.norm() for y in outputs])
            / (float(torch.linalg.matrix_norm(change, 2)) * mean([x.norm() for x in inputs])),
            "max_bound_used": mean([y.abs().max() for y in outputs])
            / (float(change.abs().max()) * mean([x.abs().sum() for x in inputs])),
        }
        for number, value in expected.items():
            assert row[number] == pytest.approx(value, rel=1e-4), (matrix.name, number)
        assert row["operator_bound_used"] <= 1
        assert row["max_bound_used"] <= 1


# -------------------- the run


def test_without_a_text_its_columns_are_left_out_and_with_one_all_parts_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_consistency.drawing.png.can_draw", lambda: False)  # pixels take most of the time
    base = write_model(tmp_path / "base", **TOKENS)
    models = [
        write_model(tmp_path / name, i + 1, base=base, scale=0.1, **TOKENS) for i, name in enumerate(("one", "two"))
    ]
    options = {"what": {"updates": Updates()}, "output": tmp_path / "out", "models": models, "base": base}
    folder = analyze(Options(**options))
    assert not any("weighted" in row for row in folder.read_table("updates"))
    n_figures = len(list(folder.figures.glob("*.svg")))
    folder = analyze(Options(**options, text=["markov/old"], world=WORLD, limit=4))
    rows = folder.read_table("updates")
    assert all("weighted" in row for row in rows if "operator" in row)
    assert len(list(folder.figures.glob("*.svg"))) == n_figures + 4
    numbers = folder.numbers()
    for name in ("rms/all", "frobenius/hidden", "stable_rank/hidden", "svd_entropy/attn.q", "relative_weighted/all"):
        assert f"updates/{name}" in numbers
    own = [row["svd_entropy"] for row in rows if row["model"] == "two" and row["matrix"] == "attn.q"]
    assert numbers["updates/svd_entropy/attn.q"] == pytest.approx(sum(own) / len(own))
    hidden = [row for row in rows if row["model"] == "two" and row["role"] == "hidden"]
    sizes = [sum(row[number] ** 2 for row in hidden) for number in ("weighted", "base_weighted")]
    assert numbers["updates/relative_weighted/hidden"] == pytest.approx(math.sqrt(sizes[0] / sizes[1]))


WRONG = [
    ({"rank": 0}, "rank = 0: expected at least 1"),
    ({"exact_up_to": -1}, "exact_up_to = -1: expected at least 0"),
    ({"positions": 0}, "positions = 0: expected at least 1"),
    ({"intruder_below": 1.5}, "intruder_below = 1.5: expected 0 < intruder_below <= 1"),
    ({"moved_above": math.nan}, "moved_above = nan: expected at least 0"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[next(iter(o)) for o, _ in WRONG])
def test_a_wrong_option_is_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Updates(**options)


def test_two_shapes_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    base, model = write_model(tmp_path / "base", n_embd=64), write_model(tmp_path / "model")
    for given, message in ((base, "is .* in .*model and .* in .*base"), (None, "compares .*model.* and none is known")):
        with pytest.raises(ValueError, match=message):
            analyze(Options({"updates": Updates()}, tmp_path / "out", model, base=given))
    assert not (tmp_path / "out").exists()
    assert VECTORS not in {matrix.name for matrix in subject(model).model.matrices}
