"""From questions and a model to the numbers of a task: likelihoods and texts come from ``inference/``.

``evaluate`` and the sets that are watched during a run go through here, so that both report the same numbers. On
several ranks every rank asks, and all have the same numbers in the end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.generate import generate
from lit_consistency.inference.score import score_items
from lit_consistency.metrics import ItemScores
from lit_consistency.tasks.generation import measure_generation, measure_programs
from lit_consistency.tasks.measure import Measured, measure_likelihood
from lit_consistency.tasks.questions import Questions

CHUNK = 2048
"""Questions between two steps of a progress bar."""


def ask_model(
    model: nn.Module,
    questions: Questions,
    tokenizer: Tokenizer,
    *,
    batch_tokens: int,
    device: torch.device,
    allow_code_execution: bool = False,
    advance: Callable[[int], object] = lambda n: None,
) -> Measured:
    """Ask a model all questions; the caller has put it into evaluation mode.

    Args:
        model: a LitGPT model of this package, or a module around one.
        questions: of a task in one format.
        tokenizer: of the model.
        batch_tokens: budget of padded tokens in one forward, or of cached tokens where the model writes.
        device: where the model is.
        allow_code_execution: the user's word that generated programs may run on this machine.
        advance: called with the number of questions that are done.

    Raises:
        ValueError: the task runs programs, and they may not run.
    """
    if questions.task.kind == "generation":
        return _written(model, questions, tokenizer, batch_tokens, device, allow_code_execution, advance)
    parts = []
    for start in range(0, len(questions.questions), CHUNK):
        chunk = questions.questions[start : start + CHUNK]
        items = [question.item for question in chunk if question.item is not None]
        parts.append(score_items(model, items, batch_tokens=batch_tokens, device=device))
        advance(len(items))
    return measure_likelihood(questions, ItemScores.concatenate(parts))


def _written(
    model: nn.Module,
    questions: Questions,
    tokenizer: Tokenizer,
    batch_tokens: int,
    device: torch.device,
    allow_code_execution: bool,
    advance: Callable[[int], object],
) -> Measured:
    task = questions.task
    prompts = [question.tokens for question in questions.questions if question.tokens is not None]
    written = generate(
        model,
        prompts,
        task.generation,
        tokenizer,
        batch_tokens=batch_tokens,
        device=device,
        end_tokens=questions.end_tokens,
    )
    advance(len(prompts))
    if task.program is None:
        return measure_generation(questions, written)
    return _on_first_rank(lambda: measure_programs(questions, written, allow_code_execution=allow_code_execution))


def _on_first_rank(run: Callable[[], Measured]) -> Measured:
    """Programs run once, not once a rank, where their time limits would make the ranks disagree."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return run()
    found: list[Measured | Exception | None] = [None]
    if dist.get_rank() == 0:
        try:
            found = [run()]
        except Exception as error:  # told to the ranks that wait, then raised on all
            found = [error]
    dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], Exception):
        raise found[0]
    assert isinstance(found[0], Measured)
    return found[0]
