"""LitGPT's model, with attention that does not cross documents.

Stock LitGPT takes no attention mask and no position ids outside of its key-value cache, but its blocks take both. The
mixin passes them, so that several documents share a row and each is computed as if it were alone. Without
``documents`` the stock forward runs, unchanged. Given up: an explicit mask rules out the flash kernel, and families
whose attention replaces or adds to the mask (sliding windows, soft-capping) or turns positions per layer are refused
by ``check_documents``. A mask of the caller's own (``mask``) is the same door, for texts that share their beginning.
With ``targets`` the head is applied only where a score is asked for.

Shapes: B rows, T tokens, V padded vocabulary, R rotated dimensions of a head.
Source: the loop over the blocks follows ``GPT.forward`` of litgpt 0.5.13, litgpt/model.py.
"""

from __future__ import annotations

import torch
from litgpt.config import Config
from litgpt.model import GPT as StockGPT
from litgpt.model import do_softcapping
from torch import Tensor

from lit_consistency.model.targets import Targets, score_targets


class DocumentMask(StockGPT):
    """Mixin for LitGPT's ``GPT`` classes that adds ``positions`` and ``documents`` to ``forward``."""

    def forward(
        self,
        tokens: Tensor,
        input_pos: Tensor | None = None,
        input_pos_maxp1: int | None = None,
        lm_head_chunk_size: int = 0,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        mask: Tensor | None = None,
        targets: Targets | None = None,
    ) -> Tensor | list[Tensor] | tuple[Tensor, Tensor]:
        """Logits of every token, or the scores of some.

        Args:
            tokens: (B, T) int64.
            input_pos: LitGPT's positions in the key-value cache, for generation; not together with ``documents``.
            input_pos_maxp1: the greatest of them plus one, see LitGPT.
            lm_head_chunk_size: if positive, a list of logits of so many tokens each, which saves memory.
            positions: (B, T) int64, rotary positions, restarting at 0 with every document. Read only with
                ``documents``: a row that holds a single document counts from 0 anyway.
            documents: (B, T) integers naming the document of each token, -1 for padding. None runs the stock forward.
            mask: (B, 1, T, T) bool, in place of ``documents``: true where the token of the third axis attends to that
                of the fourth. A row may then be longer than block_size, its positions may not.
            targets: what is asked, instead of the logits; see ``score_targets``.

        Returns:
            (B, T, V) logits, or the list of their chunks; with ``targets``, the (Q,) negative log-likelihoods in nats
            and (Q,) whether each is the first choice.

        Raises:
            ValueError: ``documents`` or ``mask`` without ``positions``, with a key-value cache, or a row longer than
                the model allows.
        """
        if documents is None and mask is None and targets is None:
            return super().forward(tokens, input_pos, input_pos_maxp1, lm_head_chunk_size)
        if positions is None and (documents is not None or mask is not None):
            raise ValueError(
                "positions = None: expected (B, T) positions that restart at every document, as documents are given"
            )
        if input_pos is not None:
            raise ValueError(
                "input_pos with documents: expected one of the two, a key-value cache holds a single document"
            )
        if self.max_seq_length < tokens.size(1) and mask is None:
            raise ValueError(f"row of {tokens.size(1)} tokens: expected at most block_size = {self.max_seq_length}")
        x = self._states(tokens, positions, mask if documents is None else document_mask(documents))
        if targets is not None:
            return score_targets(x.flatten(0, 1), targets, self._logits, self.config.padded_vocab_size)
        if lm_head_chunk_size > 0:
            return [self._logits(part) for part in x.split(lm_head_chunk_size, dim=1)]
        return self._logits(x)

    def _states(self, tokens: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        """What the head reads, (B, T, n_embd). Without a mask attention is causal and positions count from 0."""
        if mask is None or positions is None:
            cos, sin = self.cos[: tokens.size(1)][None], self.sin[: tokens.size(1)][None]
        else:
            cos, sin = self.cos[positions], self.sin[positions]
        x = self.transformer.wte(tokens)
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.n_embd**0.5, dtype=x.dtype)
        for i, block in enumerate(self.transformer.h):
            layer = ... if self.config.rope_indices is None else (..., self.config.rope_indices[i])
            x = block(x, cos[layer], sin[layer], mask)
        return self.transformer.ln_f(x)

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.lm_head(x)
        cap = self.config.final_logit_softcapping
        return logits if cap is None else do_softcapping(logits, cap)


class GPT(DocumentMask):
    """LitGPT's model with document masks; parameters and names are LitGPT's."""


def document_mask(documents: Tensor) -> Tensor:
    """Who may look at whom: earlier tokens of the same document.

    Padding (-1) counts as one more document, so every row of the mask holds its diagonal and softmax gives no NaN.

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
