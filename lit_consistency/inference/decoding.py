"""The loop of generation on one rank: which prompts are read, which samples go on, which have ended.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.kv_cache import DecodingCache
from lit_consistency.inference.sampling import GenerationOptions, next_tokens, uniform_numbers
from lit_consistency.inference.stopping import StopStrings
from lit_consistency.model import DocumentMask

# a shorter common beginning is not worth a forward of its own, and the explicit mask of those that follow
LEAST_PREFIX = 32

Sample = tuple[int, int]  # index of the prompt, index of the sample


class Generation(NamedTuple):
    """What the model wrote after a prompt.

    Attributes:
        text: decoded behind the prompt, without special tokens, cut before the first stop string.
        tokens: as generated, with those that make up the stop string and without the one that ends it.
        finished: "stop" (a stop string came up), "eos" (end of sequence or of turn) or "length" (``max_new_tokens``, or
            the end of the context).
    """

    text: str
    tokens: list[int]
    finished: str


class Request(NamedTuple):
    """Samples of one prompt, which share its reading."""

    prompt: int
    samples: tuple[int, ...]


@dataclass
class DecodingSlot:
    """A sample that is being written, and the row of the cache that it has.

    Attributes:
        prompt: index of the prompt.
        sample: index of the sample.
        n_cached: its tokens in the cache, without the prefix.
        room: tokens that may be generated.
        anchor: end of the prompt, behind which the text is decoded.
        uniforms: (room,) numbers that draw its tokens; None for greedy decoding.
        tokens: generated so far.
    """

    prompt: int
    sample: int
    n_cached: int
    room: int
    anchor: list[int]
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
        end_tokens: further tokens that end a text, as the end of a turn.
        in_step: whether every rank must run the same number of forwards.
        watch: called between forwards with the numbers of finished texts and of their tokens.

    An id that no token has, as in a vocabulary padded to a round number, is never chosen.
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
        end_tokens: Sequence[int] = (),
        in_step: bool,
        watch: Callable[[int, int], None] | None = None,
    ) -> None:
        self.gpt, self.options, self.device, self.in_step = gpt, options, device, in_step
        self.prompts, self.batch_tokens = prompts, batch_tokens
        self.watch, self.n_tokens = watch, 0
        self.tokenizer = tokenizer
        self.end_ids = tokenizer.end_ids.union(end_tokens)
        # rows of the head that no token has are trained by nothing, and what they say is no text
        unused = tokenizer.ids_without_token(gpt.config.padded_vocab_size or 0)
        self.unused = torch.tensor(unused, dtype=torch.int64, device=device)
        self.stop = StopStrings(tokenizer, options.stop)
        self.n_prefix = common_prefix(prompts)
        self.waiting: deque[Request] = deque()
        self.active: list[DecodingSlot] = []  # slot i has row i of the cache
        self.finished: dict[Sample, Generation] = {}
        self.ended_by: dict[Sample, int] = {}  # the token, of those that ended with one

    def run(self, requests: Sequence[Request]) -> dict[Sample, Generation]:
        """Every sample of the requests, which are sorted, longest prompt first."""
        self.waiting.clear()
        length = max((self._length(i) for i in range(len(self.prompts))), default=1)
        capacity = max(1, self.batch_tokens // length)
        n_rows = 0
        for request in requests:
            if self._room(request.prompt) == 0:
                self.finished |= {(request.prompt, sample): Generation("", [], "length") for sample in request.samples}
                continue
            n_rows += len(request.samples)
            for i in range(0, len(request.samples), capacity):
                self.waiting.append(Request(request.prompt, request.samples[i : i + capacity]))
        self.cache = DecodingCache(self.gpt, max(1, min(capacity, n_rows)), length)
        with self.cache.attached():
            if self.n_prefix:
                self.cache.read_prefix(self._tensor(self.prompts[0][: self.n_prefix]))
            while self._anyone_works():
                if requests_now := self._next_requests():
                    self._read(requests_now)
                elif self.active:
                    self._step()
                else:
                    self._idle()
                if self.watch is not None:
                    self.watch(len(self.finished), self.n_tokens)
        return self.finished

    # -------------------- forwards

    def _read(self, requests: list[Request]) -> None:
        """Prefill: one row a prompt, copied for its samples, and the first token of each."""
        prompts = [torch.as_tensor(self.prompts[request.prompt][self.n_prefix :]) for request in requests]
        tokens = self._tensor(torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True))
        last = self._tensor([len(prompt) - 1 for prompt in prompts])
        first_row = len(self.active)
        logits = self.cache.read_prompts(tokens, last, first_row)
        copies = [i for i, request in enumerate(requests) for _ in request.samples]
        if len(copies) > len(requests):
            self.cache.copy_rows(self._tensor(copies) + first_row, first_row, tokens.size(1))
        self.active += [self._slot(request.prompt, sample) for request in requests for sample in request.samples]
        self._extend(first_row, logits[self._tensor(copies)])

    def _step(self) -> None:
        """One token more for every sample."""
        tokens = self._tensor([slot.tokens[-1] for slot in self.active])
        n_cached = [slot.n_cached for slot in self.active]
        logits = self.cache.read_tokens(tokens, self._tensor(n_cached), max(n_cached) + 1)
        for slot in self.active:
            slot.n_cached += 1
        self._extend(0, logits)

    def _idle(self) -> None:
        """Take part in the others' forward; a forward without the cache changes nothing."""
        self.gpt(torch.zeros(1, 1, dtype=torch.int64, device=self.device))

    def _anyone_works(self) -> bool:
        working = bool(self.waiting or self.active)
        if not self.in_step:
            return working
        flag = torch.tensor(int(working), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    # -------------------- slots

    def _next_requests(self) -> list[Request]:
        """Requests for the free rows of the cache, when a quarter is free: reading few at a time costs more."""
        if not self.waiting:
            return []
        self._fit()
        chosen: list[Request] = []
        free = self.cache.rows - len(self.active)
        if 4 * free < self.cache.rows:
            return []
        while self.waiting and len(self.waiting[0].samples) <= free:
            free -= len(self.waiting[0].samples)
            chosen.append(self.waiting.popleft())
        return chosen

    def _fit(self) -> None:
        """Shorter rows and more of them, when the long prompts are done and it pays to copy the cache."""
        length = max([self._length(self.waiting[0].prompt), *(self._length(slot.prompt) for slot in self.active)])
        needed = len(self.active) + sum(len(request.samples) for request in self.waiting)
        rows = max(1, min(self.batch_tokens // length, needed))
        if rows >= 1.25 * self.cache.rows:
            self.cache.resize(rows, length)

    def _slot(self, prompt: int, sample: int) -> DecodingSlot:
        room = self._room(prompt)
        drawn = self.options.temperature > 0
        uniforms = uniform_numbers(self.options.seed, prompt, sample, room) if drawn else None
        anchor = self.tokenizer.anchor(np.asarray(self.prompts[prompt]).tolist())
        return DecodingSlot(prompt, sample, len(self.prompts[prompt]) - self.n_prefix, room, anchor, uniforms)

    def _extend(self, first: int, logits: Tensor) -> None:
        """The next token of the samples from ``first`` on; those that end with it leave."""
        slots = self.active[first:]
        uniforms = None
        if self.options.temperature > 0:
            numbers = [slot.uniforms[len(slot.tokens)] for slot in slots if slot.uniforms is not None]
            uniforms = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        if len(self.unused):
            logits = logits.index_fill(-1, self.unused, -torch.inf)
        tokens = next_tokens(logits, uniforms, self.options.temperature, self.options.top_p).tolist()
        ended = [
            first + i for i, (slot, token) in enumerate(zip(slots, tokens, strict=True)) if self._ends(slot, token)
        ]
        for i in reversed(ended):
            last = self.active.pop()
            if i < len(self.active):
                self.cache.move(len(self.active), i, last.n_cached)
                self.active[i] = last

    def _ends(self, slot: DecodingSlot, token: int) -> bool:
        reason, text = None, None
        if token in self.end_ids:
            reason = "eos"
            self.ended_by[slot.prompt, slot.sample] = token
        else:
            slot.tokens.append(token)
            text = self.stop.cut(slot.tokens, slot.anchor)
            if text is not None:
                reason = "stop"
            elif len(slot.tokens) == slot.room:
                reason = "length"
        if reason is None:
            return False
        text = self.tokenizer.decode_after(slot.anchor, slot.tokens) if text is None else text
        self.n_tokens += len(slot.tokens)
        self.finished[slot.prompt, slot.sample] = Generation(text, slot.tokens, reason)
        return True

    # -------------------- sizes

    def _room(self, prompt: int) -> int:
        return min(self.options.max_new_tokens, self.gpt.max_seq_length - len(self.prompts[prompt]))

    def _length(self, prompt: int) -> int:
        """Of a row of the cache, in tokens."""
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
