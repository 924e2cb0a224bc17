"""Keys and values of tokens already read, for decoding many sequences at once.

A row holds the tokens of one sequence in the order of their positions, behind a prefix that all rows share and that is
stored once. Rows of different lengths share a tensor: a row sees its slots up to its position, and what padding wrote
behind it is overwritten before it is seen. Prompts are read by LitGPT's own attention. A single token goes through
``_Layer.attend``, which reads the prefix as one matrix for all rows and never repeats grouped keys. Sliding windows,
soft-capping and rotary frequencies per layer are computed as in the uncached forward; LitGPT's own cache writes
batched positions one row after the other, and adds a boolean mask to soft-capped scores.

Given up: a sliding layer keeps all slots, not only those of its window.

Shapes: B rows, T new tokens, P tokens of the prefix, S slots of a row, N heads, G groups, R = N / G heads of a group,
H head size, V padded vocabulary.
Source: the loop over the blocks follows ``GPT.forward`` of litgpt 0.5.13, litgpt/model.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from litgpt.model import KVCache, do_softcapping
from torch import Tensor, nn

from lit_consistency.model import DocumentMask


class DecodingCache:
    """Keys and values of every layer: a shared prefix, and rows of slots, allocated by the first write.

    Args:
        gpt: the model.
        rows: B, sequences it holds.
        slots: S, tokens of a sequence behind the prefix.
    """

    def __init__(self, gpt: DocumentMask, rows: int, slots: int) -> None:
        self.gpt, self.rows, self.slots = gpt, rows, slots
        self.n_prefix = 0
        self.layers = [_Layer(self, block.attn) for block in gpt.transformer.h]
        # what the forward in progress does: `first_row` takes prompts, or `at` (B,) is the slot of each row's new token
        self.first_row: int | None = None
        self.at: Tensor | None = None
        self.width = 0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The model's attention uses the cache; afterwards it is as before.

        The cache goes past ``nn.Module``'s registration: a registered one would leave an empty entry behind, and would
        be seen by whatever walks the modules.
        """
        attentions = [block.attn for block in self.gpt.transformer.h]
        before = [dict(attention.__dict__) for attention in attentions]
        try:
            for attention, layer in zip(attentions, self.layers, strict=True):
                attention.__dict__ |= {"kv_cache": layer, "scaled_dot_product_attention": layer.attend}
            yield
        finally:
            for attention, entries in zip(attentions, before, strict=True):
                for name in ("kv_cache", "scaled_dot_product_attention"):
                    attention.__dict__.pop(name)
                    if name in entries:
                        attention.__dict__[name] = entries[name]
            for layer in self.layers:  # they hold this cache, and the garbage collector would keep the memory for long
                layer.keys = layer.values = layer.prefix = layer.mask = None

    # -------------------- forwards

    def read_prefix(self, tokens: Tensor) -> None:
        """Read the tokens (P,) with which all rows begin, before any row."""
        self.first_row, self.at = None, None
        self._forward(tokens[None], torch.arange(len(tokens), device=tokens.device)[None], torch.zeros_like(tokens[:1]))
        self.n_prefix = len(tokens)

    def read_prompts(self, tokens: Tensor, last: Tensor, first_row: int) -> Tensor:
        """Read prompts into rows.

        Args:
            tokens: (B, T) int64, without the prefix, padded on the right.
            last: (B,) int64, the column whose logits are wanted.
            first_row: row of the first prompt; the others follow.

        Returns:
            (B, V) logits after the token in column ``last``.
        """
        self.first_row, self.at = first_row, None
        positions = torch.arange(self.n_prefix, self.n_prefix + tokens.size(1), device=tokens.device)
        return self._forward(tokens, positions[None], last)

    def read_tokens(self, tokens: Tensor, at: Tensor, width: int) -> Tensor:
        """Read one more token of each of the first B rows.

        Args:
            tokens: (B,) int64.
            at: (B,) int64, the slot of the token: how many the row holds.
            width: the greatest of ``at`` plus one.

        Returns:
            (B, V) logits after the token.
        """
        self.first_row, self.at, self.width = 0, at, width
        return self._forward(tokens[:, None], at[:, None] + self.n_prefix, torch.zeros_like(at))

    def _forward(self, tokens: Tensor, positions: Tensor, last: Tensor) -> Tensor:
        def body(gpt: DocumentMask) -> Tensor:
            x = gpt.transformer.wte(tokens)
            if gpt.config.scale_embeddings:
                x = x * torch.tensor(gpt.config.n_embd**0.5, dtype=x.dtype)
            cos, sin = gpt.cos[positions], gpt.sin[positions]
            full, window = self._masks(positions, x.dtype)
            for i, (block, layer) in enumerate(zip(gpt.transformer.h, self.layers, strict=True)):
                table = ... if gpt.config.rope_indices is None else (..., gpt.config.rope_indices[i])
                layer.mask = window if layer.is_sliding else full
                x = block(x, cos[table], sin[table], layer.mask, positions)
            # the head is most of the work of a small model with a large vocabulary: one token a row
            x = gpt.transformer.ln_f(x[torch.arange(len(last), device=last.device), last])
            logits = gpt.lm_head(x)
            cap = gpt.config.final_logit_softcapping
            return logits if cap is None else do_softcapping(logits, cap)

        logits = self.gpt(tokens, body=body)
        assert isinstance(logits, Tensor)
        return logits

    def _masks(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """What is added to the scores (B or 1, 1, T, P + S) of layers without and with a sliding window.

        None stands for the causal mask, which allows the flash kernel.
        """
        config = self.gpt.config
        width = self.n_prefix + (positions.size(1) if self.at is None else self.width)
        slots = torch.arange(width, device=positions.device)
        seen = slots <= positions[:, :, None]
        causal = self.at is None and self.n_prefix == 0
        full = None if causal else _additive(seen, dtype)
        if config.sliding_window_size is None:
            return full, full
        return full, _additive(seen & (slots > positions[:, :, None] - config.sliding_window_size), dtype)

    # -------------------- rows

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
        self.rows, self.slots = rows, slots
        for layer in self.layers:
            layer.resize(rows, slots)

    def _tensors(self) -> list[Tensor]:
        stored = [tensor for layer in self.layers for tensor in (layer.keys, layer.values)]
        return [tensor for tensor in stored if tensor is not None]


class _Layer(KVCache):
    """What LitGPT's attention calls in place of its own cache; it asks for that type."""

    def __init__(self, cache: DecodingCache, attention: Any) -> None:
        nn.Module.__init__(self)
        self.cache = cache
        self.stock = attention.scaled_dot_product_attention
        self.scale = attention.mscale**2
        self.is_sliding = getattr(attention, "apply_sliding_window_attention", False)
        self.mask: Tensor | None = None
        self.prefix: tuple[Tensor, Tensor] | None = None
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def forward(self, input_pos: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, G, T, H); of prompts, give back all that they see, with the prefix."""
        if self.cache.first_row is None:
            self.prefix = (k, v)
            return k, v
        if self.keys is None or self.values is None:
            # zeros: a slot that is masked still enters the product with its weight of 0, and 0 times nan is nan
            self.keys = k.new_zeros(self.cache.rows, k.size(1), self.cache.slots, k.size(3))
            self.values = v.new_zeros(self.cache.rows, v.size(1), self.cache.slots, v.size(3))
        if self.cache.at is not None:
            rows = torch.arange(k.size(0), device=k.device)
            self.keys[rows, :, self.cache.at], self.values[rows, :, self.cache.at] = k[:, :, 0], v[:, :, 0]
            return k, v
        rows_taken = slice(self.cache.first_row, self.cache.first_row + k.size(0))
        self.keys[rows_taken, :, : k.size(2)], self.values[rows_taken, :, : v.size(2)] = k, v
        if self.prefix is None:
            return k, v
        before_k, before_v = (tensor.expand(k.size(0), -1, -1, -1) for tensor in self.prefix)
        return torch.cat([before_k, k], dim=2), torch.cat([before_v, v], dim=2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of queries (B, N, T, H), as (B, T, N, H).

        A single token looks at what is stored, by the layer's own mask: a sliding layer of LitGPT cuts the mask that it
        is given to the keys that it is given, here the new one.
        """
        if self.cache.at is None:
            return self.stock(q, k, v, mask)
        assert self.mask is not None
        assert self.keys is not None
        assert self.values is not None
        keys, values = (stored[: q.size(0), :, : self.cache.width] for stored in (self.keys, self.values))
        config = self.cache.gpt.config
        n_groups, n_prefix = keys.size(1), self.cache.n_prefix
        scale = self.scale / math.sqrt(config.attention_scores_scalar or q.size(-1))
        q_BGRH = q.reshape(q.size(0), n_groups, -1, q.size(-1)) * scale
        scores = q_BGRH @ keys.mT
        if self.prefix is not None:
            scores = torch.cat([_by_group(q_BGRH, self.prefix[0].mT), scores], dim=-1)
        if config.attention_logit_softcapping is not None:
            scores = do_softcapping(scores, config.attention_logit_softcapping)
        precise = torch.promote_types(scores.dtype, torch.float32)
        weights = torch.softmax(scores + self.mask, dim=-1, dtype=precise).to(values.dtype)
        y = weights[..., n_prefix:] @ values
        if self.prefix is not None:
            y = y + _by_group(weights[..., :n_prefix], self.prefix[1])
        return y.reshape(q.size(0), 1, q.size(1), -1)

    def resize(self, rows: int, slots: int) -> None:
        """Another number of rows and slots."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = _resized(self.keys, rows, slots), _resized(self.values, rows, slots)


def _by_group(x: Tensor, shared: Tensor) -> Tensor:
    """Product of x (B, G, R, K) with a matrix (1, G, K, L) that all rows share: one multiplication a group."""
    n_rows, n_groups, n_heads, _ = x.shape
    product = x.transpose(0, 1).reshape(n_groups, n_rows * n_heads, -1) @ shared[0]
    return product.view(n_groups, n_rows, n_heads, -1).transpose(0, 1)


def _resized(old: Tensor, rows: int, slots: int) -> Tensor:
    new = old.new_zeros(rows, old.size(1), slots, old.size(3))
    kept = old[:rows, :, :slots]
    new[: kept.size(0), :, : kept.size(2)] = kept
    return new


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T, S) bool to (B, 1, T, S) of 0 and the least number: LitGPT adds the mask where scores are soft-capped."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
