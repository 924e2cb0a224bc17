"""A batch of the loaders, scored or predicted without the logits of all its tokens at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_consistency.data.loading.collate import model_inputs, supervised_tokens
from lit_consistency.inference.head import Targets, Tree, read_log_probs, score_batch
from lit_consistency.model import DocumentMask


def supervised_nll(gpt: DocumentMask, batch: Mapping[str, Any]) -> Tensor:
    """(P,) nll of the batch's supervised tokens in nats, float32, or float64 of a model in float64."""
    indices, targets = supervised_tokens(batch)
    asked = Targets(indices.cpu(), torch.arange(len(indices)), targets.cpu())
    nll, _ = score_batch(gpt, batch["tokens"], asked, _tree(gpt, batch))
    return nll


def predict_documents(gpt: DocumentMask, batch: Mapping[str, Any], first_row: int) -> list[dict[str, Any]]:
    """Per document of the batch: summed nll (nats), supervised tokens, and the model's first choice at each.

    Args:
        gpt: the model.
        batch: of a loader.
        first_row: number of the batch's first row in the loader.

    Returns:
        A mapping each, with ``row``, the number of its row in the loader, and ``document``, its number in the row.
    """
    indices, targets = (tensor.cpu() for tensor in supervised_tokens(batch))
    parts = []

    def consume(log_probs: Tensor, first: int) -> None:
        asked = targets[first : first + len(log_probs)].to(log_probs.device)
        parts.append((-log_probs.gather(-1, asked[:, None])[:, 0].cpu(), log_probs.argmax(-1).cpu()))

    read_log_probs(gpt, batch["tokens"], indices, consume, _tree(gpt, batch))
    if not parts:
        return []
    nll, greedy = (torch.cat(values) for values in zip(*parts, strict=True))
    rows, documents = indices // batch["tokens"].size(1), batch["documents"].flatten().cpu()[indices]
    predicted = []
    for row, document in torch.stack((rows, documents), dim=1).unique(dim=0).tolist():
        at = (rows == row) & (documents == document)
        numbers = {"nll": float(nll[at].sum(dtype=torch.float64)), "n_tokens": int(at.sum())}
        tokens = {"targets": targets[at].tolist(), "greedy": greedy[at].tolist()}
        predicted.append({"row": first_row + row, "document": document, **numbers, **tokens})
    return predicted


def _tree(gpt: DocumentMask, batch: Mapping[str, Any]) -> Tree | None:
    """Of rows that hold several documents: each document sees itself only."""
    if not batch["packed"]:
        return None
    inputs = model_inputs(batch)
    return Tree(inputs["positions"], gpt.attended(inputs["documents"], inputs.get("spans")))
