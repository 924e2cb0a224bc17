"""Rows about how far the residual stream of a model drifted from its base's, on the same tokens, streamed.

Both models read every batch one after the other; of a layer three products of n_embd x n_embd are kept. They are taken
in as many passes over the text as the memory for sums demands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lit_consistency.analysis.core.analysis import Advance
from lit_consistency.analysis.core.inputs import batches, feed, in_passes, item_of_position, residual_streams
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.texts import Text
from lit_consistency.analysis.core.token_means import TokenMeans
from lit_consistency.analysis.linalg.similarity import CrossProducts
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.records.tables import Row


def drift_rows(subject: Subject, text: Text, advance: Advance) -> list[Row]:
    """A row for the residual stream before every block and after the last one, model against base."""
    streams = residual_streams(subject.model.config.n_layer)
    passes = in_passes(dict.fromkeys(streams, 3 * 8 * subject.model.config.n_embd**2))
    found: dict[int, Row] = {}
    for names in passes:
        for name, row in _drift(subject, text, names, lambda share: advance(share / len(passes))):
            found[streams[name]] = row
    return [{"what": "drift", "layer": layer, "n_tokens": text.n_tokens, **found[layer]} for layer in found]


def _drift(subject: Subject, text: Text, names: Sequence[str], advance: Advance) -> Iterator[tuple[str, Row]]:
    base, (model, _, device) = subject.load(subject.origin).model, subject.load()
    d, owner = subject.model.config.n_embd, item_of_position(text)
    products = {name: CrossProducts(d, d, device) for name in names}
    sums = {name: TokenMeans(text) for name in names}
    with evaluation_mode(model), evaluation_mode(base):
        for batch in batches(text.tokens, subject.batch_tokens, device):
            before: dict[str, Tensor] = {}
            feed(base, batch, names, before.__setitem__)
            items = owner[batch.at]

            def add(name: str, x: Tensor, before: dict[str, Tensor] = before, items: Tensor = items) -> None:
                origin = before.pop(name)
                products[name].add(origin, x)
                change = (x - origin).norm(dim=-1) / origin.norm(dim=-1)
                cosine = torch.nn.functional.cosine_similarity(x.double(), origin.double(), dim=-1)
                sums[name].add({"cosine": cosine, "relative_change": change}, items)

            feed(model, batch, names, add)
            advance(len(batch.at) / text.n_tokens)
    for name in names:
        yield name, {"cka": products[name].cka(), **sums[name].row()}
