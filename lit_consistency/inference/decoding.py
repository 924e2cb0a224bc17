"""The loop of generation on one rank: which prompts are read, which rows go on, which have ended.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from litgpt.tokenizer import Tokenizer
from torch import Tensor

from lit_consistency.inference.kv_cache import DecodingCache
from lit_consistency.inference.sampling import GenerationOptions, next_tokens, uniform_numbers
from lit_consistency.inference.stopping import StopStrings
from lit_consistency.model import DocumentMask

# a shorter common beginning is not worth a forward of its own, and the explicit mask of those that follow
LEAST_PREFIX = 32

Finished = tuple[int, int]  # index of the prompt, index of the sample


class Request(NamedTuple):
    """Samples of one prompt, which share its reading."""

    prompt: int
    samples: tuple[int, ...]


@dataclass
class _Row:
    prompt: int
    sample: int
    n_held: int  # its tokens in the cache, without the prefix
    room: int  # tokens that may be generated
    uniforms: np.ndarray | None
    tokens: list[int] = field(default_factory=list)


class Decoding:
    """Decodes requests in one cache.

    Args:
        gpt: the model, in evaluation mode.
        prompts: all prompts of the call, also those of other ranks: what they share is found here.
        options: as ``generate`` takes them.
        tokenizer: of the model.
        batch_tokens: budget of cached tokens.
        device: where the model is.
        in_step: whether every rank must run the same number of forwards.
    """

    def __init__(
        self,
        gpt: DocumentMask,
        prompts: Sequence[np.ndarray],
        options: GenerationOptions,
        tokenizer: Tokenizer,
        batch_tokens: int,
        device: torch.device,
        *,
        in_step: bool,
    ) -> None:
        self.gpt, self.options, self.device, self.in_step = gpt, options, device, in_step
        self.prompts, self.batch_tokens = prompts, batch_tokens
        self.eos_id = tokenizer.eos_id
        self.stop = StopStrings(tokenizer, options.stop)
        self.n_prefix = common_prefix(prompts)
        self.waiting: deque[Request] = deque()
        self.rows: list[_Row] = []
        self.found: dict[Finished, tuple[str, list[int], str]] = {}

    def run(self, requests: Sequence[Request]) -> dict[Finished, tuple[str, list[int], str]]:
        """Text, tokens and reason of each sample; ``requests`` are sorted, longest prompt first."""
        self.waiting.clear()
        slots = max((self._slots(i) for i in range(len(self.prompts))), default=1)
        capacity = max(1, self.batch_tokens // slots)
        n_rows = 0
        for request in requests:
            if self._room(request.prompt) == 0:
                self.found |= {(request.prompt, sample): ("", [], "length") for sample in request.samples}
                continue
            n_rows += len(request.samples)
            for i in range(0, len(request.samples), capacity):
                self.waiting.append(Request(request.prompt, request.samples[i : i + capacity]))
        self.cache = DecodingCache(self.gpt, max(1, min(capacity, n_rows)), slots)
        with self.cache.attached():
            if self.n_prefix:
                self.cache.read_prefix(self._tensor(self.prompts[0][: self.n_prefix]))
            while self._anyone_works():
                if requests_now := self._next_requests():
                    self._read(requests_now)
                elif self.rows:
                    self._step()
                else:
                    self._idle()
        return self.found

    # -------------------- forwards

    def _read(self, requests: list[Request]) -> None:
        """Prefill: one row a prompt, copied for its samples, and the first token of each."""
        parts = [torch.as_tensor(self.prompts[request.prompt][self.n_prefix :]) for request in requests]
        tokens = self._tensor(torch.nn.utils.rnn.pad_sequence(parts, batch_first=True))
        last = self._tensor([len(part) - 1 for part in parts])
        first_row = len(self.rows)
        logits = self.cache.read_prompts(tokens, last, first_row)
        copies = [i for i, request in enumerate(requests) for _ in request.samples]
        if len(copies) > len(requests):
            self.cache.copy_rows(self._tensor(copies) + first_row, first_row, tokens.size(1))
        rows = [self._row(request.prompt, sample) for request in requests for sample in request.samples]
        self.rows += rows
        self._extend(first_row, logits[self._tensor(copies)])

    def _step(self) -> None:
        """One token more for every row."""
        tokens = self._tensor([row.tokens[-1] for row in self.rows])
        held = [row.n_held for row in self.rows]
        logits = self.cache.read_tokens(tokens, self._tensor(held), max(held) + 1)
        for row in self.rows:
            row.n_held += 1
        self._extend(0, logits)

    def _idle(self) -> None:
        """Take part in the others' forward; a forward without the cache changes nothing."""
        self.gpt(torch.zeros(1, 1, dtype=torch.int64, device=self.device))

    def _anyone_works(self) -> bool:
        working = bool(self.waiting or self.rows)
        if not self.in_step:
            return working
        flag = torch.tensor(int(working), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    # -------------------- rows

    def _next_requests(self) -> list[Request]:
        """Requests for the free rows of the cache, when a quarter is free: reading few at a time costs more."""
        if not self.waiting:
            return []
        self._fit()
        chosen: list[Request] = []
        free = self.cache.rows - len(self.rows)
        if 4 * free < self.cache.rows:
            return []
        while self.waiting and len(self.waiting[0].samples) <= free:
            free -= len(self.waiting[0].samples)
            chosen.append(self.waiting.popleft())
        return chosen

    def _fit(self) -> None:
        """Fewer slots and more rows, when the long prompts are done and it pays to copy the cache."""
        slots = max([self._slots(self.waiting[0].prompt), *(self._slots(row.prompt) for row in self.rows)])
        needed = len(self.rows) + sum(len(request.samples) for request in self.waiting)
        rows = max(1, min(self.batch_tokens // slots, needed))
        if rows >= 1.25 * self.cache.rows:
            self.cache.resize(rows, slots)

    def _row(self, prompt: int, sample: int) -> _Row:
        room = self._room(prompt)
        drawn = self.options.temperature > 0
        uniforms = uniform_numbers(self.options.seed, prompt, sample, room) if drawn else None
        return _Row(prompt, sample, len(self.prompts[prompt]) - self.n_prefix, room, uniforms)

    def _extend(self, first: int, logits: Tensor) -> None:
        """The next token of the rows from ``first`` on; those that end with it leave."""
        rows = self.rows[first:]
        uniforms = None
        if self.options.temperature > 0:
            numbers = [row.uniforms[len(row.tokens)] for row in rows if row.uniforms is not None]
            uniforms = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        tokens = next_tokens(logits, uniforms, self.options.temperature, self.options.top_p).tolist()
        ended = [first + i for i, (row, token) in enumerate(zip(rows, tokens, strict=True)) if self._ends(row, token)]
        for i in reversed(ended):
            last = self.rows.pop()
            if i < len(self.rows):
                self.cache.move(len(self.rows), i, last.n_held)
                self.rows[i] = last

    def _ends(self, row: _Row, token: int) -> bool:
        finished = None
        text = None
        if token == self.eos_id:
            finished = "eos"
        else:
            row.tokens.append(token)
            text = self.stop.cut(row.tokens)
            if text is not None:
                finished = "stop"
            elif len(row.tokens) == row.room:
                finished = "length"
        if finished is None:
            return False
        text = self.stop.decode(row.tokens) if text is None else text
        self.found[row.prompt, row.sample] = (text, row.tokens, finished)
        return True

    # -------------------- sizes

    def _room(self, prompt: int) -> int:
        return min(self.options.max_new_tokens, self.gpt.max_seq_length - len(self.prompts[prompt]))

    def _slots(self, prompt: int) -> int:
        return len(self.prompts[prompt]) - self.n_prefix + self._room(prompt)

    def _tensor(self, values: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int64).to(self.device)


def common_prefix(prompts: Sequence[np.ndarray]) -> int:
    """Tokens with which all prompts begin, at least one less than the shortest has; 0 where it is not worth it."""
    if len(prompts) < 2:
        return 0
    n = min(len(prompt) for prompt in prompts) - 1
    first = np.asarray(prompts[0])
    for prompt in prompts[1:]:
        if n < LEAST_PREFIX:
            return 0
        different = np.flatnonzero(first[:n] != np.asarray(prompt)[:n])
        n = int(different[0]) if len(different) else n
    return n if n >= LEAST_PREFIX else 0
