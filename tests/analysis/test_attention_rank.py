from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from lit_consistency.analysis.attention_rank import AttentionRank, core_spectrum, head_spectra
from tests.analysis.models import nothing, subject, write_model
from tests.runs import changed_on_purpose

FAMILIES = {
    "pythia-14m": {},  # a quarter of a head is turned
    "Llama-3.2-1B": {"n_query_groups": 2, "intermediate_size": 32},  # two heads share keys and values
    "Qwen3-0.6B": {"n_query_groups": 1, "head_size": 16, "intermediate_size": 32},  # heads wider than n_embd / n_head
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_spectra_are_those_of_the_dense_products(family: str, tmp_path: Path) -> None:
    """The products formed in full, one head after the other, with LitGPT's own slices of the fused weight."""
    of = subject(write_model(tmp_path / "model", name=family, **FAMILIES[family]))
    config = of.model.config
    size, groups = config.head_size, config.n_query_groups
    for layer in range(config.n_layer):
        fused = of.model.tensor(f"transformer.h.{layer}.attn.qkv.weight", torch.float64)
        proj = of.model.tensor(f"transformer.h.{layer}.attn.proj.weight", torch.float64)
        queries, keys, values = fused.split([config.n_head * size, groups * size, groups * size])
        spectra = head_spectra(of, layer)
        for head in range(config.n_head):
            shared = head // (config.n_head // groups)
            q, k, v = (m[i * size : (i + 1) * size] for m, i in ((queries, head), (keys, shared), (values, shared)))
            dense = {"qk": q.T @ k, "vo": proj[:, head * size : (head + 1) * size] @ v}
            if config.rope_n_elem < size:
                dense["qk_unrotated"] = q[config.rope_n_elem :].T @ k[config.rope_n_elem :]
            assert set(dense) == set(spectra)
            for product, matrix in dense.items():
                expected = torch.linalg.svdvals(matrix)[: len(spectra[product][head])]
                torch.testing.assert_close(spectra[product][head], expected, rtol=1e-5, atol=1e-12)


def test_a_score_is_a_product_of_w_qk(tmp_path: Path) -> None:
    """What W_QK means: without rotation, biases and norms, the score of two inputs is x W_QK y."""
    of = subject(write_model(tmp_path / "model"))
    q, k = (of.model.block(m, torch.float64) for m in of.model.matrices[:4] if m.kind in ("attn.q", "attn.k"))
    x, y = torch.randn(2, 32, dtype=torch.float64)
    torch.testing.assert_close((q[:8] @ x) @ (k[:8] @ y), x @ (q[:8].T @ k[:8]) @ y)
    assert (q.shape, k.shape) == ((32, 32), (32, 32))


def test_known_ranks(tmp_path: Path) -> None:
    """W_Q = W_K with orthonormal rows: all head_size directions weigh the same; with one row left, one does."""
    model = write_model(tmp_path / "model")
    weights = torch.load(model / "lit_model.pth", weights_only=True)
    qkv = weights["transformer.h.0.attn.qkv.weight"]
    rows = torch.linalg.qr(torch.randn(32, 32))[0]
    qkv[:32], qkv[32:64] = rows, rows
    qkv[1:8] = 0  # of the first head
    torch.save(weights, model / "lit_model.pth")
    changed_on_purpose(model)
    rows_of = AttentionRank().measure(subject(model), "layer 0", nothing)
    numbers = {row["head"]: row for row in rows_of if row["product"] == "qk"}
    assert [numbers[head]["pseudo_rank"] for head in range(4)] == [0.125, 1.0, 1.0, 1.0]
    assert numbers[0]["stable_rank"] == pytest.approx(1)
    assert numbers[2]["stable_rank"] == pytest.approx(8, rel=1e-5)
    assert numbers[2]["nuclear_norm"] == pytest.approx(8, rel=1e-5)


def test_pseudo_rank_counts_the_share_of_the_sum() -> None:
    from lit_consistency.analysis.linalg.spectra import pseudo_rank

    values = torch.tensor([6.0, 3.0, 0.5, 0.5], dtype=torch.float64)
    assert [pseudo_rank(values, share) for share in (0.5, 0.6, 0.61, 0.9, 0.95, 1.0)] == [1, 1, 2, 2, 3, 4]
    assert pseudo_rank(torch.zeros(3), 0.95) == 0


@pytest.mark.slow
def test_the_core_is_twenty_times_faster_than_the_dense_product() -> None:
    """Width 1,024, 16 heads of 64; process time of one thread, in turn."""
    torch.set_num_threads(1)
    first, second = torch.randn(2, 16, 64, 1024, dtype=torch.float64)
    start = time.process_time()
    cores = core_spectrum(first, second)
    middle = time.process_time()
    dense = torch.stack([torch.linalg.svdvals(a.T @ b) for a, b in zip(first[:2], second[:2], strict=True)])
    end = time.process_time()
    torch.testing.assert_close(cores[:2], dense[:, :64], rtol=1e-5, atol=1e-9)
    assert (end - middle) * 8 > 20 * (middle - start)
