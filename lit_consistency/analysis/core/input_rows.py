"""Rows about what linear layers read: how tokens are spread over coordinates, and how they covary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_consistency.analysis.core.analysis import Advance
from lit_consistency.analysis.core.inputs import (
    batches,
    feed,
    item_of_position,
    linear_modules,
    moments,
    residual_streams,
)
from lit_consistency.analysis.core.model_files import ModelFiles, layer_and_kind
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.texts import Text
from lit_consistency.analysis.core.token_means import TokenMeans
from lit_consistency.analysis.linalg.coordinates import coordinate_statistics
from lit_consistency.analysis.linalg.spectra import effective_rank, participation_ratio
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.inference.load import find_device
from lit_consistency.records.tables import Row

RANKS = 24
"""Eigenvalues of a spectrum that are kept, at equal ratios of their ranks: what a logarithmic axis can show."""


def inputs_of(files: ModelFiles) -> dict[str, tuple[int, str]]:
    """Linear layer -> its layer and kind, of layers that read the same the first, in the order of the layers."""
    named = {name: layer_and_kind(name) for name in linear_modules(files)}
    kept = {
        name: (layer, kind.replace("mlp.fc_1", "mlp.fc"))
        for name, (layer, kind) in named.items()
        if not kind.endswith("mlp.fc_2")
    }
    return dict(sorted(kept.items(), key=lambda entry: (entry[1][0] < 0, entry[1][0])))


def input_rows(subject: Subject, files: ModelFiles, text: Text, near_zero: float, advance: Advance) -> list[Row]:
    """A row for every input of a linear layer, and for the residual stream, in one pass over the text."""
    modules = {
        **inputs_of(files),
        **{name: (layer, "residual") for name, layer in residual_streams(files.config.n_layer).items()},
    }
    sums = {name: TokenMeans(text) for name in modules}
    owner, (model, _, device) = item_of_position(text), subject.load(files)
    width = {}
    with evaluation_mode(model):
        for batch in batches(text.tokens, subject.batch_tokens, device):
            items = owner[batch.at]

            def add(name: str, x: Tensor, items: Tensor = items) -> None:
                sums[name].add(coordinate_statistics(x, near_zero), items)
                width[name] = x.size(1)

            feed(model, batch, list(modules), add)
            advance(len(batch.at) / text.n_tokens)
    return [
        {
            "what": "residual" if kind == "residual" else "input", "layer": layer, "kind": kind, "width": width[name],
            "n_tokens": text.n_tokens, **sums[name].row(), "massive_max": sums[name].largest.get("massive", math.nan),
        }
        for name, (layer, kind) in modules.items()
    ]  # fmt: skip


def covariance_rows(subject: Subject, files: ModelFiles, text: Text, layer: int, advance: Advance) -> list[Row]:
    """Of every input in a layer (-1: outside of them) a row of its covariance, and some of the spectrum."""
    modules = inputs_of(files)
    # of all layers at once: a pass over the text for each of them would be wasted
    known = moments(subject, files, text, list(modules))
    device = find_device(subject.shared.device)
    rows: list[Row] = []
    chosen = {name: kind for name, (at, kind) in modules.items() if at == layer}
    for name, kind in chosen.items():
        second, mean, n = known[name]
        shares = eigenvalue_shares((second - torch.outer(mean, mean)).to(device))
        second_shares = eigenvalue_shares(second.to(device))
        power = second.diagonal()
        where: Row = {"layer": layer, "kind": kind, "width": len(mean), "n_tokens": n}
        rows.append({
            "what": "covariance", **where, **_ranks(shares, ""), **_ranks(second_shares, "second_"),
            "mean_share": float(mean.square().sum() / power.sum()),
            "neuron_kurtosis": float(power.square().mean() / power.mean() ** 2),
        })  # fmt: skip
        rows += [
            {"what": "spectrum", **where, "rank": rank, "share": float(shares[rank - 1])}
            for rank in spread_ranks(len(shares))
            # below it there is the rounding of float64 alone
            if shares[rank - 1] > 1e-15
        ]
        advance(1 / len(chosen))
    return rows


def eigenvalue_shares(symmetric: Tensor) -> Tensor:
    """(d,) float64 on the CPU, descending: eigenvalues over their sum, what rounding made negative is 0; NaN of 0."""
    values = torch.linalg.eigvalsh(symmetric).clamp(min=0).flip(0).cpu()
    return values / values.sum()


def _ranks(shares: Tensor, prefix: str) -> Row:
    return {
        f"{prefix}top_share": float(shares[0]),
        f"{prefix}effective_rank": effective_rank(shares),
        f"{prefix}participation_ratio": participation_ratio(shares),
    }


def spread_ranks(d: int) -> list[int]:
    """From 1 to d at equal ratios, ``RANKS`` of them at most."""
    return sorted({round(d ** (i / (RANKS - 1))) for i in range(RANKS)})
