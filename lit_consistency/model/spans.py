"""Attention over the documents of a row without a matrix of who sees whom.

``document_mask`` holds T numbers a token, and what it hides is computed all the same. Where documents start says the
same in one number each. On CUDA in half precision torch's flash kernel for sequences of many lengths takes that; on a
CPU one document is asked after the other, which is as much less work as they are shorter than the row. On a GPU in
float32 no kernel of torch takes anything but a mask, and blocks compiled for a CPU would be so for every layout anew.

Shapes: B rows, T tokens, H heads, S size of a head, N documents of all rows.
Source: ``torch.nn.attention.varlen``, of torch 2.10 and later.
"""

from __future__ import annotations

import importlib
import math
from functools import cache
from typing import Any, NamedTuple

import litgpt.lora
import litgpt.model
import torch
from litgpt.config import Config
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

ONE_BY_ONE = ("cpu",)
"""Types of devices that have no kernel for sequences of many lengths."""
LARGEST_HEAD = 256
"""Of the flash kernel, whose heads are of multiples of 8."""


class Spans(NamedTuple):
    """Where the documents of a batch lie, its rows laid end to end.

    Both come in few sizes, so that a compiled block has few programs: behind the last document stand empty ones, as
    many as make N a power of two.

    Args:
        starts: (N + 1,) int32, first token of each document and of each row's padding; at last B * T.
        longest: none has more tokens: a power of two. On the CPU, where a kernel's grid is chosen.
    """

    starts: Tensor
    longest: int


def find_spans(documents: Tensor) -> Spans:
    """Where documents lie; on a GPU this waits for it, so loaders do it on the CPU.

    Args:
        documents: (B, T) integers naming the document of each token; padding is one of its own.
    """
    is_first = torch.ones_like(documents, dtype=torch.bool)
    is_first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    firsts = is_first.flatten().nonzero()[:, 0]
    n_empty = power_of_two(len(firsts)) - len(firsts)
    starts = torch.cat([firsts, firsts.new_full((n_empty + 1,), documents.numel())])
    return Spans(starts.int(), power_of_two(documents.size(1)))


def power_of_two(least: int) -> int:
    """The smallest that is no less than a number from 1 on."""
    return 1 << (least - 1).bit_length()


class _BySpans(nn.Module):
    """Mixin for LitGPT's attention: its ``mask`` may be spans."""

    config: Config
    mscale: float

    def scaled_dot_product_attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
        """Attention over (B, H, T, S) queries, keys and values of equally many heads; (B, T, H, S)."""
        if not isinstance(mask, Spans):
            return super().scaled_dot_product_attention(q, k, v, mask)  # type: ignore[misc]
        scale = self.mscale**2 / math.sqrt(self.config.attention_scores_scalar or self.config.head_size)
        a, b, c = (x.to(v.dtype).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        starts, longest = mask
        if q.device.type in ONE_BY_ONE:
            y = one_after_the_other(a, b, c, starts, scale)
        else:
            y = _kernel()(a, b, c, starts, starts, longest, longest, scale=scale, window_size=(-1, 0))
        return y.view(q.size(0), q.size(2), *y.shape[1:])


def one_after_the_other(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float) -> Tensor:
    """Causal attention of (B * T, H, S) queries within each document; the same shape."""
    lengths = [length for length in starts.diff().tolist() if length]
    qs, ks, vs = (x.transpose(0, 1)[None].split(lengths, dim=2) for x in (q, k, v))
    documents = zip(qs, ks, vs, strict=True)
    outputs = [scaled_dot_product_attention(a, b, c, is_causal=True, scale=scale) for a, b, c in documents]
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)


class CausalSelfAttention(_BySpans, litgpt.model.CausalSelfAttention):
    """LitGPT's attention, whose ``mask`` may be spans."""


class LoRACausalSelfAttention(_BySpans, litgpt.lora.CausalSelfAttention):
    """LitGPT's attention with adapters, whose ``mask`` may be spans."""


BY_SPANS = {
    litgpt.model.CausalSelfAttention: CausalSelfAttention,
    litgpt.lora.CausalSelfAttention: LoRACausalSelfAttention,
}


def allow_spans(gpt: litgpt.model.GPT) -> None:
    """Give the attention of a new model the second form; its parameters and their names stay."""
    for block in gpt.transformer.h:
        if (kind := BY_SPANS.get(type(block.attn))) is not None:
            block.attn.__class__ = kind


def takes_spans(gpt: litgpt.model.GPT, device: torch.device) -> bool:
    """Whether spans can be used for what the model computes there now: by device, precision and shape."""
    by_spans = all(isinstance(block.attn, _BySpans) for block in gpt.transformer.h)
    if device.type == "cpu":
        return by_spans and not any(hasattr(block, "program") for block in gpt.transformer.h)
    if device.type != "cuda" or _kernel() is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    autocast = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if autocast else gpt.transformer.wte.weight.dtype
    size = gpt.config.head_size
    assert size is not None
    fits = size % 8 == 0 and size <= LARGEST_HEAD and dtype in (torch.float16, torch.bfloat16)
    return fits and by_spans


@cache
def _kernel() -> Any:
    """``varlen_attn``; None before torch 2.10."""
    try:
        return importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
