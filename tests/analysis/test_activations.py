from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_consistency.analysis.activations import COVARIANCE, COVARIANCE_NUMBERS, DRIFT, INPUT, Activations
from lit_consistency.analysis.core.model_files import ModelFiles
from lit_consistency.analysis.core.run import Options, analyze
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.linalg.coordinates import coordinate_statistics
from lit_consistency.analysis.linalg.similarity import CrossProducts
from lit_consistency.analysis.linalg.spectra import participation_ratio
from lit_consistency.drawing import png
from lit_consistency.records.tables import Row
from lit_consistency.stats.intervals import estimate, ratio
from tests.analysis.models import WORLD, nothing, subject, write_model
from tests.analysis.test_inputs import FAMILIES, read_by_hand, uneven, write_text
from tests.runs import changed_on_purpose

WIDE: dict[str, Any] = {"padded_vocab_size": 512, "vocab_size": 512}


def rows_of(of: Subject, analysis: Activations | None = None) -> list[Row]:
    analysis = analysis or Activations()
    return [row for part in analysis.parts(of) for row in analysis.measure(of, part, nothing)]


def by_loop(x: np.ndarray, near_zero: float) -> dict[str, float]:
    """Of one token, coordinate by coordinate."""
    d, sizes = len(x), sorted(abs(float(v)) for v in x)
    rms = math.sqrt(sum(v * v for v in sizes) / d)
    return {
        "rms": rms,
        "l1_ratio": sum(sizes) / (math.sqrt(d) * math.sqrt(sum(v * v for v in sizes))),
        "linf_rms": sizes[-1] / rms,
        "kurtosis": sum(v**4 for v in sizes) / d / rms**4,
        "near_zero": sum(v < near_zero * rms for v in sizes) / d,
        "massive": sizes[-1] / sizes[(d - 1) // 2],
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_a_loop_over_tokens(family: str, tmp_path: Path) -> None:
    """Padded batches, sums by item and sums of squares, against single rows, coordinates and NumPy's covariance."""
    of = uneven(tmp_path, family)
    text = of.text()
    read = [read_by_hand(of, tokens) for tokens, _ in text.rows]
    documents = [cluster for cluster, (tokens, _) in zip(text.clusters, text.rows, strict=True) for _ in tokens]
    rows = rows_of(of)
    modules = [name for name in read[0] if not name.endswith("fc_2")]
    assert sum(row["what"] == "input" for row in rows) == len(modules)
    for name in modules:
        words = name.replace("fc_1", "fc").split(".")
        layer, kind = (-1, "lm_head") if name == "lm_head" else (int(words[2]), ".".join(words[3:]))
        mine = {row["what"]: row for row in rows if (row["layer"], row.get("kind")) == (layer, kind)}
        x = np.concatenate([row[name].numpy() for row in read])
        tokens = [by_loop(token, 0.1) for token in x]
        for number in INPUT:
            expected = estimate(ratio([token[number] for token in tokens]), documents)
            found = [mine["input"][key] for key in (number, f"{number}_low", f"{number}_high")]
            assert found == pytest.approx([expected.value, expected.low, expected.high], rel=1e-3, abs=1e-6), number
        assert mine["input"]["massive_max"] == pytest.approx(max(t["massive"] for t in tokens), rel=1e-3)
        precise = x.astype(np.float64)
        for prefix, matrix in (("", np.cov(precise.T, bias=True)), ("second_", precise.T @ precise / len(precise))):
            shares = np.linalg.svd(matrix)[1]
            shares = shares / shares.sum()
            entropy = -sum(p * math.log(p) for p in shares if p > 0)
            assert mine["covariance"][f"{prefix}top_share"] == pytest.approx(shares[0], rel=1e-4)
            assert mine["covariance"][f"{prefix}effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-4)
            assert mine["covariance"][f"{prefix}participation_ratio"] == pytest.approx(1 / sum(shares**2), rel=1e-4)
        neurons = np.sqrt((precise**2).mean(0))
        kurtosis = (neurons**4).mean() / (neurons**2).mean() ** 2
        assert mine["covariance"]["neuron_kurtosis"] == pytest.approx(kurtosis, rel=1e-4)
        mean_share = (precise.mean(0) ** 2).sum() / (precise**2).sum(1).mean()
        assert mine["covariance"]["mean_share"] == pytest.approx(mean_share, rel=1e-4)
        shares = np.sort(np.linalg.eigvalsh(np.cov(precise.T, bias=True)))[::-1]
        drawn = [row for row in rows if (row["what"], row["layer"], row.get("kind")) == ("spectrum", layer, kind)]
        assert drawn[0]["rank"] == 1
        for row in drawn:
            assert row["share"] == pytest.approx(shares[int(row["rank"]) - 1] / shares.sum(), rel=1e-2, abs=1e-9)


def test_known_vectors() -> None:
    d = 400
    equal, one, zero = torch.ones(d), torch.zeros(d), torch.zeros(d)
    equal[::3], one[7] = -1, 1e10  # its fourth power is no float32
    gaussian = torch.distributions.Normal(0, 5.0).icdf((torch.arange(d) + 0.5) / d)
    found = coordinate_statistics(torch.stack([equal, one, gaussian, zero]), 0.1)
    assert found["l1_ratio"].tolist()[:3] == pytest.approx([1, 1 / 20, math.sqrt(2 / math.pi)], rel=5e-3)
    assert found["linf_rms"].tolist()[:2] == pytest.approx([1, 20])
    assert found["kurtosis"].tolist()[:3] == pytest.approx([1, 400, 3], rel=0.05)
    # of a Gaussian one 2 Phi(0.1) - 1
    assert found["near_zero"].tolist()[:3] == pytest.approx([0, 399 / 400, 0.0797], abs=3e-3)
    assert found["massive"][0] == 1
    assert found["massive"][1:].isnan().tolist() == [True, False, True]
    assert all(found[name][3].isnan() for name in found if name != "rms")


def test_known_activations(tmp_path: Path) -> None:
    """Embeddings of one coordinate each: what the residual stream holds before the first block."""
    model = write_model(tmp_path / "model", **WIDE)
    weights = torch.load(model / "lit_model.pth", weights_only=True)
    weights["transformer.wte.weight"] = torch.eye(32).repeat(16, 1)
    torch.save(weights, model / "lit_model.pth")
    changed_on_purpose(model)
    of = subject(model, texts=("markov/old",))
    (row,) = [row for row in rows_of(of) if row["what"] == "residual" and row["layer"] == 0]
    found = [row[name] for name in ("l1_ratio", "linf_rms", "kurtosis", "near_zero")]
    assert found == pytest.approx([1 / math.sqrt(32), math.sqrt(32), 32, 31 / 32], rel=1e-6)
    assert row["l1_ratio_low"] == pytest.approx(row["l1_ratio_high"])
    assert math.isnan(float(row["massive"]))


def centred_kernels(x: Tensor, y: Tensor) -> float:
    """CKA by the n x n kernels and the centring matrix, as the source defines it."""
    n = len(x)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return float((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt())


def cka(x: Tensor, y: Tensor, pieces: int = 1) -> float:
    products = CrossProducts(x.size(1), y.size(1), x.device)
    for one, other in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
        products.add(one, other)
    return products.cka()


def test_cka_is_that_of_the_kernels() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 6, dtype=torch.float64) + 5, torch.randn(40, 9, dtype=torch.float64)
    y[:, :3] += x[:, :3]
    assert cka(x, y) == pytest.approx(centred_kernels(x, y), rel=1e-10)
    assert cka(x, y, pieces=7) == pytest.approx(cka(x, y), rel=1e-12)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    assert cka(x, 3 * x @ rotation + 2) == pytest.approx(1, rel=1e-12)
    # two columns that vary apart from one another
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert cka(square[:, :1], square[:, 1:]) == 0
    assert cka(square[:, :1], square) == pytest.approx(1 / math.sqrt(2))
    assert math.isnan(cka(torch.full((9, 2), 0.3), torch.randn(9, 2)))


def test_participation_counts_equal_eigenvalues() -> None:
    assert participation_ratio(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)


def test_drift_is_that_of_whole_hidden_states(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", **WIDE)
    model = write_model(tmp_path / "model", 1, base=base, scale=0.05, **WIDE)
    of = subject(model, base, (write_text(tmp_path),))
    found = {row["layer"]: row for row in rows_of(of) if row["what"] == "drift"}
    assert list(found) == [0, 1, 2]

    def states(loaded: torch.nn.Module, tokens: Tensor) -> list[Tensor]:
        """Embedding and the output of every block, of one row."""
        kept: list[Tensor] = []
        watched = [loaded.transformer.wte, *loaded.transformer.h]
        handles = [module.register_forward_hook(lambda _m, _a, out: kept.append(out[0])) for module in watched]
        with torch.no_grad():
            loaded(tokens[None])
        for handle in handles:
            handle.remove()
        return kept

    text = of.text()
    for layer in range(3):
        before, after = (
            torch.cat([states(of.load(files).model, tokens)[layer] for tokens, _ in text.rows]).double()
            for files in (of.origin, of.model)
        )
        cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(before, after, strict=True)]
        changes = [float((a - b).norm() / a.norm()) for a, b in zip(before, after, strict=True)]
        assert found[layer]["cka"] == pytest.approx(centred_kernels(before, after), rel=1e-5)
        assert found[layer]["cosine"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)
        assert found[layer]["relative_change"] == pytest.approx(sum(changes) / len(changes), rel=1e-4)
    assert 0.5 < float(found[2]["cka"]) < 0.999


def test_a_model_that_has_not_moved_has_not_drifted(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", **WIDE)
    shutil.copytree(base, tmp_path / "copy")
    rows = rows_of(subject(tmp_path / "copy", base, ("markov/old",), limit=10))
    drift = [row for row in rows if row["what"] == "drift"]
    assert [row["cka"] for row in drift] == pytest.approx([1, 1, 1], rel=1e-12)
    assert [row["cosine"] for row in drift] == pytest.approx([1, 1, 1], rel=1e-6)
    assert [row["relative_change"] for row in drift] == [0, 0, 0]
    # the same weights are not measured twice
    assert {row["model"] for row in rows} == {"copy"}


def test_a_run_holds_the_base_once_and_the_numbers_of_the_last_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "can_draw", lambda: False)  # twelve pictures as pixels take seconds
    base = write_model(tmp_path / "first", **WIDE)
    models = [write_model(tmp_path / f"model{i}", i, base=base, scale=0.02, **WIDE) for i in (1, 2)]
    # its rows come first, also before those of a single model
    own = [row["model"] for row in rows_of(subject(models[0], base, ("markov/old",), limit=2))]
    assert list(dict.fromkeys(own)) == ["first", "model1"]
    names = ["base", "model1", "model2"]
    options = Options(
        {"activations": Activations()}, tmp_path / "out", models=models, base=base,
        text=("markov/old", "markov/new"), limit=6, world=WORLD, batch_tokens=256, device="cpu",
    )  # fmt: skip
    folder = analyze(options)
    rows = folder.read_table("activations")
    assert list(dict.fromkeys(row["model"] for row in rows)) == names
    inputs = [row for row in rows if row["what"] == "input"]
    assert len(inputs) == len(names) * 2 * 9
    own = [row for row in rows if row["model"] == names[-1] and row["text"] == "markov/old"]
    numbers = folder.numbers()
    expected = [float(row["l1_ratio"]) for row in own if row["what"] == "input" and row["kind"] == "mlp.fc"]
    assert numbers["activations/l1_ratio/mlp.fc"] == pytest.approx(sum(expected) / 2)
    everything = [float(row["kurtosis"]) for row in own if row["what"] == "input"]
    assert numbers["activations/kurtosis/all"] == pytest.approx(sum(everything) / 9)
    streams = [float(row["massive_max"]) for row in own if row["what"] == "residual"]
    assert numbers["activations/massive_max/residual"] == max(streams)
    drift = {row["layer"]: row for row in own if row["what"] == "drift"}
    assert numbers["activations/cka/last"] == drift[2]["cka"]
    assert numbers["activations/cka/mean"] == pytest.approx((drift[1]["cka"] + drift[2]["cka"]) / 2)
    kinds = ("attn.qkv", "attn.proj", "mlp.fc", "mlp.proj", "lm_head", "all")
    wanted = {f"activations/{n}/{k}" for n in (*INPUT, *COVARIANCE_NUMBERS) for k in kinds}
    wanted |= {f"activations/{number}/residual" for number in (*INPUT, "massive_max")}
    assert set(numbers) == wanted | {f"activations/{n}/{w}" for n in DRIFT for w in ("mean", "last")}
    assert len(list(folder.figures.glob("*.svg"))) == 2 * (len(INPUT) + len(COVARIANCE) + 1) + len(DRIFT)


def test_the_base_is_optional(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", **WIDE)
    model = write_model(tmp_path / "model", 1, base=base, **WIDE)
    alone = rows_of(subject(model, texts=("markov/old",), limit=4))
    assert "drift" not in {row["what"] for row in alone}
    without = rows_of(subject(model, base, ("markov/old",), limit=4), Activations(with_base=False))
    assert {row["model"] for row in without} == {"model"}
    assert [row for row in without if row["what"] != "drift"] == alone


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"near_zero = 0: expected above 0"):
        Activations(near_zero=0)
    base, model = write_model(tmp_path / "first", n_layer=1), write_model(tmp_path / "base")
    with pytest.raises(ValueError, match=r"h\.1\..* is .* expected one shape"):
        Activations().check(subject(model, base, ("markov/old",)))
    of = subject(model, write_model(tmp_path / "other", 1), ("markov/old",))
    with pytest.raises(ValueError, match=r"one is named 'base', as the base is"):
        Activations().check(replace(of, base=ModelFiles(of.origin.folder, "base", "base")))
