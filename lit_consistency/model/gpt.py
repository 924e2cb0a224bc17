"""LitGPT's model, with attention that does not cross documents.

Stock LitGPT takes no attention mask and no position ids outside of its key-value cache, but its blocks take both. The
mixin passes them, so that several documents share a row and each is computed as if it were alone. Without
``documents`` the stock forward runs, unchanged. Given up: families whose attention replaces or adds to the mask
(sliding windows, soft-capping) or turns positions per layer are refused by ``check_documents``.

Shapes: B rows, T tokens, V padded vocabulary, R rotated dimensions of a head.
Source: the loop over the blocks follows ``GPT.forward`` of litgpt 0.5.13, litgpt/model.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from litgpt.config import Config
from litgpt.model import GPT as StockGPT
from litgpt.model import do_softcapping
from torch import Tensor

from lit_consistency.model.spans import Spans, allow_spans, takes_spans
from lit_consistency.model.tying import is_tied, tie


class DocumentMask(StockGPT):
    """Mixin for LitGPT's ``GPT`` classes: ``positions`` and ``documents`` in ``forward``, and tied embeddings."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        allow_spans(self)
        if is_tied(config):
            tie(self)

    def forward(
        self,
        tokens: Tensor,
        input_pos: Tensor | None = None,
        input_pos_maxp1: int | None = None,
        lm_head_chunk_size: int = 0,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        body: Callable[[DocumentMask], Tensor] | None = None,
    ) -> Tensor | list[Tensor]:
        """Logits of every token.

        Args:
            tokens: (B, T) int64.
            input_pos: LitGPT's positions in the key-value cache, for generation; not together with ``documents``.
            input_pos_maxp1: the greatest of them plus one, as in LitGPT.
            lm_head_chunk_size: if positive, a list of logits of so many tokens each, which saves memory.
            positions: (B, T) int64, rotary positions, restarting at 0 with every document. Read only with
                ``documents``: a row that holds a single document counts from 0 anyway.
            documents: (B, T) integers naming the document of each token, -1 for padding. None runs the stock forward.
            body: called with the model, and its result returned; for a caller with its own loop over the blocks. The
                hooks of this module's call, by which FSDP2 gathers its weights, run around it.

        Returns:
            (B, T, V) logits, or the list of their chunks.

        Raises:
            ValueError: ``documents`` without ``positions``, with a key-value cache, or in a row longer than the model
                allows.
        """
        if body is not None:
            return body(self)
        if documents is None:
            return super().forward(tokens, input_pos, input_pos_maxp1, lm_head_chunk_size)
        if positions is None:
            raise ValueError(
                "positions = None: expected (B, T) positions that restart at every document, as documents are given"
            )
        if input_pos is not None:
            raise ValueError(
                "input_pos with documents: expected one of the two, a key-value cache holds a single document"
            )
        if self.max_seq_length < tokens.size(1):
            raise ValueError(f"row of {tokens.size(1)} tokens: expected at most block_size = {self.max_seq_length}")
        x = self.document_states(tokens, positions, documents)
        if lm_head_chunk_size > 0:
            return [self._logits(chunk) for chunk in x.split(lm_head_chunk_size, dim=1)]
        return self._logits(x)

    def states(self, tokens: Tensor, positions: Tensor | None = None, mask: Tensor | Spans | None = None) -> Tensor:
        """What the head reads, for a caller of ``body``.

        Args:
            tokens: (B, T) int64.
            positions: (B, T) int64, rotary positions, all below block_size however long the row is; None counts from 0.
            mask: (B, 1, T, T) bool, true where the token of the third axis attends to that of the fourth; or where the
                documents lie, for a model that ``takes_spans``; None is causal.

        Returns:
            (B, T, n_embd).

        Raises:
            ValueError: a row without positions that is longer than the model allows.
        """
        if positions is None and tokens.size(1) > self.max_seq_length:
            raise ValueError(f"row of {tokens.size(1)} tokens: expected at most block_size = {self.max_seq_length}")
        at = slice(tokens.size(1)) if positions is None else positions
        cos, sin = (table[at][None] if positions is None else table[at] for table in (self.cos, self.sin))
        x = self.transformer.wte(tokens)
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.n_embd**0.5, dtype=x.dtype)
        for i, block in enumerate(self.transformer.h):
            layer = ... if self.config.rope_indices is None else (..., self.config.rope_indices[i])
            x = block(x, cos[layer], sin[layer], mask)
        return self.transformer.ln_f(x)

    def document_states(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        spans: Spans | None = None,
    ) -> Tensor:
        """``states`` of rows that hold several documents, or, where ``documents`` is None, one each.

        Args:
            tokens: (B, T) int64.
            positions: as of ``states``.
            documents: (B, T) integers naming the document of each token.
            spans: where they lie, if that is known; used instead where a kernel takes it.
        """
        if documents is None:
            return self.states(tokens)
        return self.states(tokens, positions, self.attended(documents, spans))

    def attended(self, documents: Tensor, spans: Spans | None) -> Tensor | Spans:
        """What ``states`` takes for rows of several documents: the spans where a kernel does, else their mask."""
        if spans is not None and takes_spans(self, documents.device):
            return spans
        return document_mask(documents)

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.lm_head(x)
        cap = self.config.final_logit_softcapping
        return logits if cap is None else do_softcapping(logits, cap)


class GPT(DocumentMask):
    """LitGPT's model with document masks; parameters and names are LitGPT's."""


def document_mask(documents: Tensor) -> Tensor:
    """Which tokens attend to which: each to itself and to earlier tokens of its document.

    Padding (-1) counts as one more document, so that no row of the mask is empty, for which softmax gives NaN.

    Args:
        documents: (B, T) integers naming the document of each token.

    Returns:
        (B, 1, T, T) bool, true where the token of the third axis attends to the token of the fourth.
    """
    same_BTT = documents[:, :, None] == documents[:, None, :]
    return same_BTT.tril()[:, None]


def check_documents(config: Config) -> None:
    """Refuse the families in which packed documents would not equal separate ones.

    Raises:
        ValueError: attention with soft-capping, with a sliding window or with rotary frequencies per layer.
    """
    reason = None
    if config.attention_logit_softcapping is not None:
        reason = f"attention_logit_softcapping = {config.attention_logit_softcapping} adds to the mask"
    elif config.sliding_window_size is not None and any(config.sliding_window_indices or []):
        reason = (
            f"sliding_window_size = {config.sliding_window_size} replaces the mask (for rows no longer than the window,"
            " the override `sliding_window_size: null` changes nothing and allows packing)"
        )
    elif config.rope_indices is not None:
        reason = "rope_indices chooses rotary frequencies per layer"
    if reason is not None:
        raise ValueError(f"packing = true with {config.name}: {reason}; expected `packing: false`")
