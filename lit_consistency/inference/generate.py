"""Text from prompts, many at once: prompts sorted by length, a key-value cache, samples that leave when they are done.

Longest prompts come first. The cache has as many rows as the budget allows; the row of a sample that has ended is taken
by the last one, and when a quarter of the rows is free the next prompts are read into them. The common beginning of all
prompts (few-shot examples) is read once. Several samples of a prompt share its reading.

Prompts are shared out over the ranks, and every rank has all results in the end. A sharded model needs all ranks in
every forward: then the ranks agree before each one, and an idle rank feeds a single token.

Given up: compiled models run uncompiled here, as the shapes change with every step.
Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.decoding import Decoding, Generation, Request, Sample
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.inference.sampling import GenerationOptions
from lit_consistency.model import DocumentMask


def generate(
    model: nn.Module,
    prompts: Sequence[np.ndarray],
    options: GenerationOptions,
    tokenizer: Tokenizer,
    *,
    batch_tokens: int,
    device: torch.device,
    end_tokens: Sequence[int] = (),
) -> list[list[Generation]]:
    """Write ``n_samples`` texts after each prompt; the model and all random states are left as they were.

    Args:
        model: a LitGPT model of this package, or a module that holds one (a LightningModule, DDP).
        prompts: each (T,) integers, at least one token and at most the model's ``block_size``.
        options: see ``GenerationOptions``. Draws are a function of the seed, the prompt's index and the sample's index.
        tokenizer: of the model; its ``end_ids`` end a text.
        batch_tokens: budget of cached tokens: rows times the longest prompt with its new tokens. A longer one is
            decoded alone.
        device: where the model is.
        end_tokens: further tokens that end a text, as the end of a turn in a chat.

    Returns:
        The samples of each prompt, the same on every rank. Without a temperature they are all alike, and computed once.

    Raises:
        ValueError: an option out of its range, an empty prompt, or one longer than the context.
    """
    gpt = decoder(model)
    _check(prompts, options, batch_tokens, gpt.max_seq_length)
    n_drawn = options.n_samples if options.temperature > 0 else 1
    requests = [Request(i, tuple(range(n_drawn))) for i in range(len(prompts))]
    requests.sort(key=lambda request: -len(prompts[request.prompt]))
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    sharded = world_size > 1 and any(isinstance(parameter, DTensor) for parameter in gpt.parameters())
    # shapes change with every step, and a compiled model would be compiled again for each
    with evaluation_mode(model), torch.compiler.set_stance("force_eager"):
        decoding = Decoding(
            gpt, prompts, options, tokenizer, batch_tokens, device, end_tokens=end_tokens, in_step=sharded
        )
        generations = _gathered(decoding.run(requests[rank::world_size]), world_size)
    samples = [[generations[i, s] for s in range(n_drawn)] for i in range(len(prompts))]
    return [drawn * (options.n_samples // n_drawn) for drawn in samples]


def decoder(model: nn.Module) -> DocumentMask:
    """The LitGPT model inside a module.

    Raises:
        ValueError: there is none.
    """
    for module in model.modules():
        if isinstance(module, DocumentMask):
            return module
    raise ValueError(f"model = {type(model).__name__}: expected a LitGPT model of this package, or a module around one")


def _gathered(generations: dict[Sample, Generation], world_size: int) -> dict[Sample, Generation]:
    """Those of all ranks."""
    if world_size == 1:
        return generations
    of_ranks: list[dict[Sample, Generation]] = [{}] * world_size
    dist.all_gather_object(of_ranks, generations)
    return {sample: generation for of_rank in of_ranks for sample, generation in of_rank.items()}


def _check(prompts: Sequence[np.ndarray], options: GenerationOptions, batch_tokens: int, longest: int) -> None:
    for key, value, allowed, good in (
        ("max_new_tokens", options.max_new_tokens, "at least 1", options.max_new_tokens >= 1),
        ("temperature", options.temperature, "0 (greedy) or more", 0 <= options.temperature < float("inf")),
        ("top_p", options.top_p, "above 0, at most 1", 0 < options.top_p <= 1),
        ("n_samples", options.n_samples, "at least 1", options.n_samples >= 1),
        ("seed", options.seed, "0 or more", options.seed >= 0),
        ("stop", options.stop, "strings that are not empty", all(options.stop)),
        ("batch_tokens", batch_tokens, "at least 1", batch_tokens >= 1),
    ):
        if not good:
            raise ValueError(f"{key} = {value!r}: expected {allowed}")
    for i, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= longest:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens: expected 1 to {longest}, the model's context")
