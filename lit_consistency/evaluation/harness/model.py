"""lm-evaluation-harness on our model, in process and without conversion.

``HarnessModel`` answers the three requests of lm-eval (log-likelihood of a continuation, of a whole text, greedy or
sampled text) with the tokens that lm-eval's Hugging Face path would feed; ``run_harness`` hands it to lm-eval's own
tasks. lm-eval is imported only there. Given up: chat templates and soft prompts of lm-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.evaluation.harness.tokens import HarnessTokens, ScoredTokens
from lit_consistency.inference.generate import generate
from lit_consistency.inference.sampling import GenerationOptions
from lit_consistency.inference.score import document_model, score_sequences

MAX_NEW_TOKENS = 256
"""Where a request names no limit; ``HFLM.max_gen_toks``."""
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""lm-eval's names of the same limit, the first one given holds."""


class HarnessModel:
    """lm-eval's requests, answered by our model.

    Args:
        model: a LitGPT model in evaluation mode, or a module around one.
        tokenizer: of the model.
        batch_tokens: budget of padded tokens in one forward.
        device: where the model is.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, *, batch_tokens: int, device: torch.device) -> None:
        gpt = document_model(model)
        if gpt is None:
            raise ValueError(f"model = {type(model).__name__}: expected a LitGPT model, or a module around one")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.device = device
        self.tokens = HarnessTokens(tokenizer, gpt.max_seq_length)

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of every (context, continuation): log-likelihood in nats, and whether greedy decoding would write it."""
        return self._score(self.tokens.pair_tokens(pairs))

    def rolling_log_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """Log-likelihood of whole texts in nats; long ones in windows that predict every token once."""
        windows = [self.tokens.windows(tokens) for tokens in self.tokens.encode(texts)]
        scores = iter(self._score([window for of_text in windows for window in of_text]))
        return [sum(next(scores)[0] for _ in of_text) for of_text in windows]

    def texts(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """What the model writes after every context, under the request's own settings, up to its stop strings."""
        groups: dict[GenerationOptions, list[int]] = {}
        for i, (_, settings) in enumerate(requests):
            groups.setdefault(self.generation_options(settings), []).append(i)
        texts = [""] * len(requests)
        for options, members in groups.items():
            room = self.tokens.max_length - options.max_new_tokens
            if room < 1:
                raise ValueError(
                    f"max_gen_toks = {options.max_new_tokens}: expected less than the block_size, "
                    f"{self.tokens.max_length}"
                )
            prompts = [np.asarray(ids[-room:]) for ids in self.tokens.encode([requests[i][0] for i in members])]
            written = generate(
                self.model, prompts, options, self.tokenizer, batch_tokens=self.batch_tokens, device=self.device
            )
            for i, samples in zip(members, written, strict=True):
                texts[i] = samples[0].text
        return texts

    def generation_options(self, settings: dict[str, Any]) -> GenerationOptions:
        """lm-eval's ``gen_kwargs`` in our words.

        Raises:
            ValueError: a setting that we do not have; the message names it.
        """
        known = {"until", "do_sample", "temperature", "top_p", "seed", *LIMITS}
        if unknown := sorted(settings.keys() - known):
            raise ValueError(f"generation_kwargs: {', '.join(unknown)}: expected only {', '.join(sorted(known))}")
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        sampled = settings.get("do_sample", bool(settings.get("temperature")))
        limit = next((settings[name] for name in LIMITS if settings.get(name) is not None), MAX_NEW_TOKENS)
        return GenerationOptions(
            max_new_tokens=int(limit),
            stop=tuple(text for text in until if text),
            temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
            top_p=float(settings.get("top_p", 1.0)),
            n_samples=1,
            seed=int(settings.get("seed", 0)),
        )

    def _score(self, sequences: Sequence[ScoredTokens]) -> list[tuple[float, bool]]:
        if not sequences:
            return []
        sums = score_sequences(self.model, sequences, batch_tokens=self.batch_tokens, device=self.device)
        return list(zip((-sums.nll).tolist(), (sums.n_hits == sums.n_tokens).tolist(), strict=True))


def run_harness(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: list[str],
    *,
    include_path: Path | str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_tokens: int,
    device: torch.device,
) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness.

    Args:
        model: a LitGPT model in evaluation mode, or a module around one.
        tokenizer: of the model.
        tasks: names of lm-eval's tasks and groups, or of those under ``include_path``.
        include_path: folder of further task files. Where it holds all the tasks, lm-eval's own 14,000 are not indexed,
            which takes ten seconds.
        limit: documents of each task; None takes all.
        num_fewshot: examples in the prompt; None takes the task's own number, and tasks that fix it at 0 keep it.
        batch_tokens: budget of padded tokens in one forward.
        device: where the model is.

    Returns:
        lm-eval's results: ``results`` by task, ``samples`` by task, ``configs``, ``versions`` and so on.

    Raises:
        ValueError: lm-eval is not installed, an unknown task, or one whose data cannot be loaded.
    """
    try:
        from lm_eval.api.model import LM
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(
            f"harness = {','.join(tasks)}: lm-eval cannot be imported ({error}); pip install 'lit_consistency[eval]'"
        ) from None

    inner = HarnessModel(model, tokenizer, batch_tokens=batch_tokens, device=device)

    class LitConsistencyLM(LM):
        """The three requests; every rank gets all of them, and the scoring shares them out."""

        tokenizer_name = tokenizer.folder.name

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return inner.log_likelihoods([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return inner.rolling_log_likelihoods([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            return inner.texts([request.args for request in requests])

    manager = TaskManager(include_path=include_path, include_defaults=False) if include_path is not None else None
    if manager is None or not {*tasks} <= {*manager.all_tasks}:
        manager = TaskManager(include_path=include_path)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise ValueError(f"harness = {','.join(unknown)}: no such task of lm-eval, nor under {include_path}")
    try:
        loaded = manager.load(tasks)
    except Exception as error:  # data sets are loaded here: no network, no such name, a bad file are kinds of their own
        raise ValueError(f"harness = {','.join(tasks)}: lm-eval could not load it ({error})") from error
    for task in loaded["tasks"].values():
        default = task.get_config("num_fewshot")
        if default is None or (num_fewshot is not None and default != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=1234)
    return evaluate(LitConsistencyLM(), loaded, limit=limit, bootstrap_iters=1000)
