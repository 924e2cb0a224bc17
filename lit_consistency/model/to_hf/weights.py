"""Weights under the names of transformers, one block after the other.

LitGPT's own converters rename and split them; what they get wrong is put right here: the output matrix that they drop
for Gemma and Phi-4 even where training has moved it away from the embedding, and the norm behind OLMo 2's attention,
which they do not find. A block is all that is held at a time beside what the caller keeps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from litgpt.config import Config
from litgpt.scripts import convert_lit_checkpoint as litgpt
from torch import Tensor

from lit_consistency.model.tensors import is_finite
from lit_consistency.model.to_hf.families import family_of
from lit_consistency.model.tying import EMBEDDING, HEAD, same

CONVERTERS = {
    "gpt_neox": litgpt.copy_weights_gpt_neox,
    "falcon": litgpt.copy_weights_falcon,
    "phi": litgpt.copy_weights_phi,
    "phi3": litgpt.copy_weights_phi,
    "gemma2": litgpt.copy_weights_gemma_2,
    "gemma3_text": litgpt.copy_weights_gemma_3,
    "qwen2": litgpt.copy_weights_qwen_2_5,
    "qwen3": litgpt.copy_weights_qwen_3,
    "qwen3_moe": litgpt.copy_weights_qwen_3,
    "olmo2": litgpt.copy_weights_olmo2,
}
"""By the model type in transformers; all others are converted as Llama."""
_BLOCK = re.compile(r"transformer\.h\.(\d+)\.")


def hf_weights(config: Config, lit_weights: Mapping[str, Tensor], tied: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight with its name in transformers.

    Args:
        config: of the model.
        lit_weights: under LitGPT's names.
        tied: whether the output matrix is the embedding, and is left out.

    Yields:
        The embedding first: LitGPT, reading shards back, looks for it when it misses the output matrix. A weight may
        be a view of one of ``lit_weights``.

    Raises:
        ValueError: a weight is not finite, named as LitGPT names it, or no family of transformers computes the model.
    """
    family = family_of(config)
    copy_weights = CONVERTERS.get(family.model_type, litgpt.copy_weights_llama)
    for names in _blocks(lit_weights):
        block = {name: finite(name, lit_weights[name]) for name in names}
        if family.model_type == "olmo2":
            block = {name.replace(".post_attention_norm.", ".norm_2."): tensor for name, tensor in block.items()}
        renamed: dict[str, Tensor] = {}
        copy_weights(config, renamed, block)
        yield from renamed.items()
    if not tied:
        yield family.head, finite(HEAD, lit_weights[HEAD])


def embedding_is_head(lit_weights: Mapping[str, Tensor]) -> bool:
    """Whether embedding and output matrix are equal bit for bit: one weight in transformers (tied)."""
    return {EMBEDDING, HEAD} <= lit_weights.keys() and same(lit_weights[EMBEDDING], lit_weights[HEAD])


def finite(name: str, tensor: Tensor) -> Tensor:
    """``tensor``, unless one of its numbers is not finite.

    Raises:
        ValueError: naming it.
    """
    if not is_finite(tensor):
        count = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name}: {count} of {tensor.numel()} numbers are not finite; such a model is not exported")
    return tensor


def _blocks(lit_weights: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of the weights, but for the output matrix: the embedding, then block by block, then the rest."""
    by_block: dict[int, list[str]] = {}
    for name in lit_weights:
        if name not in (EMBEDDING, HEAD):
            block = _BLOCK.match(name)
            by_block.setdefault(int(block[1]) if block else len(lit_weights), []).append(name)
    return [[EMBEDDING], *(by_block[i] for i in sorted(by_block))]
