"""Keys and values of tokens already read, for decoding many sequences at once.

The slot of a token is its position in its own sequence. Rows of different lengths then share a tensor without a mask
of their own: a row sees the slots up to its position, and what padding wrote behind it is overwritten before it is
seen. LitGPT's ``KVCache`` writes batched positions one row after the other and adds boolean masks to scores where the
attention is soft-capped; here a step writes all rows at once, and every layer gets the mask it needs, so sliding
windows, soft-capping and rotary frequencies per layer are computed as in the uncached forward.

Given up: a sliding layer keeps all slots, not only those of its window; grouped keys and values are stored once per
group, but LitGPT's attention repeats them for its heads at every step.

Shapes: B rows, T new tokens, S slots, G groups, H head size, V padded vocabulary.
Source: the loop over the blocks follows ``GPT.forward`` of litgpt 0.5.13, litgpt/model.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from litgpt.model import KVCache, do_softcapping
from torch import Tensor, nn

from lit_consistency.model import DocumentMask


class DecodingCache:
    """Keys and values (B, G, S, H) of every layer, allocated by the first write.

    Args:
        n_layer: layers of the model.
        rows: B, sequences it holds.
        slots: S, tokens of a sequence.
    """

    def __init__(self, n_layer: int, rows: int, slots: int) -> None:
        self.rows, self.slots = rows, slots
        self.layers = [_Layer() for _ in range(n_layer)]

    def aim(self, first_row: int, start: int, width: int, at: Tensor | None = None) -> None:
        """Where the next forward writes and what it reads.

        Args:
            first_row: the forward's rows are this one and those that follow.
            start: slot of the first new token of every row.
            width: slots that are read: those before it.
            at: (B,) slot of each row's one new token, in place of ``start``.
        """
        for layer in self.layers:
            layer.rows, layer.slots = self.rows, self.slots
            layer.first_row, layer.start, layer.width, layer.at = first_row, start, width, at

    def spread(self, n_slots: int) -> None:
        """Copy the first slots of row 0 to all rows."""
        for stored in self._tensors():
            stored[1:, :, :n_slots] = stored[:1, :, :n_slots]

    def copy_rows(self, sources: Tensor, first_row: int, n_slots: int) -> None:
        """Rows from ``first_row`` on become copies of the rows ``sources`` (n,), in their first slots."""
        for stored in self._tensors():
            stored[first_row : first_row + len(sources), :, :n_slots] = stored[sources, :, :n_slots]

    def move(self, source: int, target: int, n_slots: int) -> None:
        """Row ``target`` becomes a copy of row ``source``, in its first slots."""
        for stored in self._tensors():
            stored[target, :, :n_slots] = stored[source, :, :n_slots]

    def resize(self, rows: int, slots: int) -> None:
        """Another number of rows and slots; what fits of the contents is kept."""
        for layer in self.layers:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                if old is not None:
                    new = old.new_zeros(rows, old.size(1), slots, old.size(3))
                    kept = old[:rows, :, :slots]
                    new[: kept.size(0), :, : kept.size(2)] = kept
                    setattr(layer, name, new)
        self.rows, self.slots = rows, slots

    def _tensors(self) -> list[Tensor]:
        stored = [tensor for layer in self.layers for tensor in (layer.keys, layer.values)]
        return [tensor for tensor in stored if tensor is not None]


class _Layer(KVCache):
    """What LitGPT's attention calls; it asks for a ``KVCache``, of which only the type is used."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.rows = self.slots = self.first_row = self.start = self.width = 0
        self.at: Tensor | None = None

    def forward(self, input_pos: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values (B, G, T, H) and give back all that these rows may see."""
        if self.keys is None or self.values is None:
            # zeros: a slot that is masked still enters the product with its weight of 0, and 0 times nan is nan
            self.keys = k.new_zeros(self.rows, k.size(1), self.slots, k.size(3))
            self.values = v.new_zeros(self.rows, v.size(1), self.slots, v.size(3))
        return self._store(self.keys, k), self._store(self.values, v)

    def _store(self, stored: Tensor, new: Tensor) -> Tensor:
        stored = stored[self.first_row : self.first_row + new.size(0)]
        if self.at is not None:
            stored[torch.arange(new.size(0), device=new.device), :, self.at] = new[:, :, 0]
        else:
            stored[:, :, self.start : self.start + new.size(2)] = new
            if self.start == 0:
                return new
        return stored[:, :, : self.width]


@contextmanager
def attached(gpt: DocumentMask, cache: DecodingCache) -> Iterator[None]:
    """The model's attention uses the cache; afterwards it is as before.

    The cache goes past ``nn.Module``'s registration: a registered one would stay behind as an empty entry, and would be
    seen by whatever walks the modules.
    """
    attentions = [block.attn for block in gpt.transformer.h]
    before = [attention.__dict__.get("kv_cache", _ABSENT) for attention in attentions]
    try:
        for attention, layer in zip(attentions, cache.layers, strict=True):
            attention.__dict__["kv_cache"] = layer
        yield
    finally:
        for attention, value in zip(attentions, before, strict=True):
            if value is _ABSENT:
                attention.__dict__.pop("kv_cache", None)
            else:
                attention.__dict__["kv_cache"] = value


_ABSENT: Any = object()


def prefill(
    gpt: DocumentMask, cache: DecodingCache, tokens: Tensor, last: Tensor, first_row: int, start: int
) -> Tensor:
    """Read new tokens of rows that hold ``start`` tokens each.

    Args:
        gpt: with the cache attached.
        cache: where keys and values go.
        tokens: (B, T) int64, padded on the right.
        last: (B,) int64, the column whose logits are wanted.
        first_row: row of the cache for the first row of ``tokens``; the others follow.
        start: tokens that the rows hold already, the same for all.

    Returns:
        (B, V) logits after the token in column ``last``.
    """
    positions = torch.arange(start, start + tokens.size(1), device=tokens.device).expand_as(tokens)
    cache.aim(first_row, start, start + tokens.size(1))
    return _forward(gpt, tokens, positions, last, width=start + tokens.size(1), causal=start == 0)


def decode(gpt: DocumentMask, cache: DecodingCache, tokens: Tensor, positions: Tensor, width: int) -> Tensor:
    """Read one more token of each of the first B rows.

    Args:
        gpt: with the cache attached.
        cache: holds the tokens before.
        tokens: (B,) int64.
        positions: (B,) int64, how many tokens each row holds.
        width: the greatest of ``positions`` plus one.

    Returns:
        (B, V) logits after the token.
    """
    cache.aim(0, 0, width, at=positions)
    last = torch.zeros_like(positions)
    return _forward(gpt, tokens[:, None], positions[:, None], last, width=width, causal=False)


def _forward(gpt: DocumentMask, tokens: Tensor, positions: Tensor, last: Tensor, *, width: int, causal: bool) -> Tensor:
    def body(gpt: DocumentMask) -> Tensor:
        x = gpt.transformer.wte(tokens)
        if gpt.config.scale_embeddings:
            x = x * torch.tensor(gpt.config.n_embd**0.5, dtype=x.dtype)
        cos, sin = gpt.cos[positions], gpt.sin[positions]
        masks = _Masks(gpt, positions, width, causal, x.dtype)
        for i, block in enumerate(gpt.transformer.h):
            table = ... if gpt.config.rope_indices is None else (..., gpt.config.rope_indices[i])
            x = block(x, cos[table], sin[table], masks.of(block), positions)
        # the head is most of the work of a small model with a large vocabulary: one token a row
        x = gpt.transformer.ln_f(x[torch.arange(len(last), device=last.device), last])
        logits = gpt.lm_head(x)
        cap = gpt.config.final_logit_softcapping
        return logits if cap is None else do_softcapping(logits, cap)

    logits = gpt(tokens, body=body)
    assert isinstance(logits, Tensor)
    return logits


class _Masks:
    """Who sees which slot: (B, 1, T, S) for all layers, and another one for layers with a sliding window."""

    def __init__(self, gpt: DocumentMask, positions: Tensor, width: int, causal: bool, dtype: torch.dtype) -> None:
        config = gpt.config
        slots = torch.arange(width, device=positions.device)
        seen = slots <= positions[:, :, None]
        self.full = None if causal else self._mask(seen, config.attention_logit_softcapping, dtype)
        self.window = self.full
        if config.sliding_window_size is not None:
            near = seen & (slots > positions[:, :, None] - config.sliding_window_size)
            self.window = self._mask(near, config.attention_logit_softcapping, dtype)

    @staticmethod
    def _mask(seen: Tensor, softcapping: float | None, dtype: torch.dtype) -> Tensor:
        if softcapping is None:
            return seen[:, None]
        # LitGPT adds the mask to soft-capped scores
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[
            :, None
        ]

    def of(self, block: nn.Module) -> Tensor | None:
        return self.window if getattr(block.attn, "apply_sliding_window_attention", False) else self.full
