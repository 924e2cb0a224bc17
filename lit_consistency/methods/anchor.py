r"""An anchor: a term of the loss that holds what the model predicts near what its base predicts.

With p the base's and q the model's distribution of the next token, over the M anchored positions of an optimizer step,

.. math::
    \text{strength} \cdot \frac{1}{M} \sum_{m=1}^{M} \mathrm{KL}_k(p_m \| q_m),

added to the mean loss of the data. Of p the k likeliest tokens S are kept, and all others are one bucket:

.. math::
    \mathrm{KL}_k(p \| q) = \sum_{v \in S} p_v \log \frac{p_v}{q_v} + p_{rest} \log \frac{p_{rest}}{q_{rest}}, \qquad
    p_{rest} = 1 - \sum_{v \in S} p_v, \; q_{rest} = 1 - \sum_{v \in S} q_v.

That is the divergence of two coarser distributions: at most the full one, never negative, zero at the base. k = 0 takes
all tokens. M counts over micro-batches, accumulation and ranks, so splitting a batch changes nothing; ``train/loss``
stays the data's, ``train/anchor`` is the mean divergence in nats. It combines with every optimizer and method.

Memory: along the base's own samples its answers are read from the cache on disk, 8 k + 4 bytes a position (520 MB a
million positions at k = 64). Along the run's rows, or with k = 0, the base answers in every step, which takes one more
forward and one more copy of the weights, sharded as they are; LoRA needs none, its base is the model without adapters.

Source: Marek et al. 2026, arXiv 2605.26097 (github.com/martin-marek/forgetting, loss.py: ``kl_pre`` on replayed or own
texts, ``kl_dwn`` on those that are learned); Li and Hoiem 2016, Learning without Forgetting, arXiv 1606.09282. The
bucket is the data-processing inequality: Cover and Thomas 2006, Elements of Information Theory, section 2.8.
Shapes: P positions, V vocabulary, k kept tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lit_consistency.data.loading.collate import pinned
from lit_consistency.data.loading.mixed_rows import draw
from lit_consistency.data.sources.own_samples import OwnSamples
from lit_consistency.data.tokens.token_files import Shard
from lit_consistency.model import IGNORE, DocumentMask
from lit_consistency.model.head_loss import Reduction, linear_loss, logits_by_parts
from lit_consistency.optimizers.core.checks import check_at_least, check_choice

On = Literal["own", "replayed", "learned"]
# of the draws of texts; replayed sets have the streams from 0 on, mixtures those from 2^16 on
STREAM = 1 << 17


class TopK(NamedTuple):
    """The base's likeliest tokens at P positions, as tensors or as arrays on disk.

    Attributes:
        ids: (P, k) integers.
        log_probs: (P, k), of these tokens.
        log_rest: (P,), of all other tokens together.
    """

    ids: Any
    log_probs: Any
    log_rest: Any


class AnchorTexts(NamedTuple):
    """The base's own samples, and what it predicts at each token but a text's last; None where it is asked again."""

    texts: Shard
    base: TopK | None


class Asked(NamedTuple):
    """What the base answers along the rows of a micro-batch.

    Attributes:
        indices: (P,) int64, positions as indices into the flattened batch.
        base: the base's likeliest tokens there, or log-probabilities (P, V) of all.
        total: (), int64, such positions in the whole optimizer step, over all ranks; at least 1.
    """

    indices: Tensor
    base: TopK | Tensor
    total: Tensor


class Places(NamedTuple):
    """Where a micro-batch is anchored.

    Attributes:
        rows: (R,) int64, the rows that the base reads; of some of them nothing may be asked.
        in_rows: (P,) int64, positions as indices into the flattened rows.
        indices: (P,) int64, the same as indices into the flattened batch.
    """

    rows: Tensor
    in_rows: Tensor
    indices: Tensor


class Divergence(Reduction):
    """KL_k(base || model) of every row; with log-probabilities of all tokens, KL(base || model)."""

    def __init__(self, base: TopK | Tensor) -> None:
        self.base = base

    def values(self, logits: Tensor, rows: slice) -> Tensor:
        """(R,) in nats, with gradient to the model's logits."""
        if isinstance(self.base, TopK):
            return divergence(TopK(*(table[rows] for table in self.base)), logits)
        p, q = self.base[rows], logits.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)


class Place(NamedTuple):
    """Where in the run a micro-batch stands.

    Attributes:
        step: number of the optimizer step.
        part: number of the micro-batch among those of the step, over all ranks.
        n_parts: how many there are.
    """

    step: int
    part: int
    n_parts: int


def top_k(logits: Tensor, k: int) -> TopK:
    """The ``k`` likeliest of (P, V) logits or log-probabilities, k < V, and the bucket of all others."""
    return bucket(logits, logits.topk(k, dim=-1).indices)


def bucket(logits: Tensor, ids: Tensor) -> TopK:
    """Log-probabilities of chosen tokens and of all others together.

    Args:
        logits: (P, V); half precision is raised to float32.
        ids: (P, k), k < V.
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    total = logits.logsumexp(-1)
    # not as 1 - sum, of which rounding leaves nothing where the rest is small
    rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1)
    return TopK(ids, logits.gather(-1, ids) - total[:, None], rest - total)


def divergence(base: TopK, logits: Tensor) -> Tensor:
    """(P,) KL_k(base || model) in nats, with gradient to the model's logits (P, V)."""
    model = bucket(logits, base.ids)
    kept = (base.log_probs.exp() * (base.log_probs - model.log_probs)).sum(-1)
    return kept + base.log_rest.exp() * (base.log_rest - model.log_rest)


class KLAnchor:
    """strength * KL(base || model) in the loss, as the top of this file says; with strength 0 there is none.

    Args:
        strength: Factor of the mean divergence, at least 0.
        on: Along which tokens: ``own``, texts that the base has written, read beside the rows of every step;
            ``replayed``, the learned tokens of the rows that ``data.replay`` mixes in; ``learned``, those of the new
            rows.
        k: Likeliest tokens of the base that are told apart, at least 1; 0: all of them.
        texts_per_step: Of ``own``: how many texts are read in an optimizer step.
        samples: Of ``own``: the texts; 1,000 of the run's block_size when not given. Those of a replay with the same
            options are the same texts, drawn once.

    Raises:
        ValueError: An option is out of its range, or is not used with this ``on``.
    """

    def __init__(
        self,
        strength: float = 1.0,
        on: On = "own",
        k: int = 64,
        texts_per_step: int = 8,
        samples: OwnSamples | None = None,
    ) -> None:
        check_at_least("strength", strength, 0)
        check_choice("on", on, get_args(On))
        check_at_least("k", k, 0)
        check_at_least("texts_per_step", texts_per_step, 1)
        if samples is not None and on != "own":
            raise ValueError(f"samples with on = {on}: expected on = own, whose texts they are")
        self.strength = strength
        self.on: On = on
        self.k = k
        self.texts_per_step = texts_per_step
        self.samples = samples or OwnSamples()
        self._own: AnchorTexts | None = None
        self._seed = 0
        self._lengths = np.empty(0, dtype=np.int64)
        # in a list, since what a module holds as a module is trained, saved and sharded with it
        self._base: list[nn.Module] = []
        self._as_base: Callable[[nn.Module], AbstractContextManager] | None = None

    @property
    def asks_base(self) -> bool:
        """Whether the base answers during the run."""
        return self.on != "own" or self.k == 0

    @property
    def has_read(self) -> bool:
        """Whether the base's own samples have been taken."""
        return self._own is not None

    def fingerprint(self) -> str | None:
        """SHA-256 of the tokens of the base's own samples; None where it reads none."""
        return self._own.texts.meta["sha256"]["tokens.bin"] if self._own is not None else None

    # -------------------- before the first step

    def check_data(self, data: Any) -> None:
        """ValueError where nothing is replayed that the anchor is to hold."""
        if self.on == "replayed" and getattr(data, "replay", None) is None:
            raise ValueError("model.anchor.on = replayed: expected data.replay, or on = own, which needs no data")

    def read(self, own: AnchorTexts, seed: int) -> None:
        """Take the base's own samples; which of them a step reads is a function of ``seed`` and the step."""
        self._own, self._seed = own, seed
        self._lengths = np.diff(own.texts.offsets) - 1  # a text's last token is only ever a target

    def begin(self, base: nn.Module | None, as_base: Callable[[nn.Module], AbstractContextManager] | None) -> None:
        """Take what answers as the base during the run.

        Args:
            base: a frozen copy, or None.
            as_base: a context in which the trained model is the base.
        """
        self._base = [] if base is None else [base.requires_grad_(False).eval()]
        self._as_base = as_base

    def to(self, device: torch.device) -> None:
        """Move the frozen copy to where the model is; one in shards is there already."""
        for base in self._base:
            if not is_sharded(base):
                base.to(device)

    # -------------------- in a step

    def ask(self, gpt: nn.Module, batch: Mapping[str, Any]) -> Asked | None:
        """The base's answers along a micro-batch's own rows, before the model's; None where nothing is asked there."""
        if self.on == "own":
            return None
        rows, in_rows, indices = batch["anchored"] if "anchored" in batch else self.places(batch)
        total = batch["supervised"]
        if (of_replay := batch.get("supervised_replayed")) is not None:
            total = of_replay if self.on == "replayed" else total - of_replay
        if not len(rows):
            if not is_sharded(gpt):
                return None
            rows = rows.new_zeros(1)  # all ranks gather the base's shards together
        chosen = {key: batch[key][rows] for key in ("tokens", "positions", "documents")}
        inputs = chosen if batch["packed"] else {"tokens": chosen["tokens"]}
        return Asked(indices, self._answers(gpt, inputs, in_rows, self.k), total.clamp(min=1))

    def look_up(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What ``ask`` wants to know of a batch that is still on the CPU; of training, and not along own samples."""
        if self.on == "own" or "supervised" not in batch:
            return {}
        return {"anchored": tuple(map(pinned, self.places(batch)))}

    def places(self, batch: Mapping[str, Any]) -> Places:
        """Where a micro-batch's own rows are anchored; a device would be waited for."""
        wanted = batch["targets"] != IGNORE
        if (replayed := batch.get("replayed")) is not None:
            wanted = wanted & (replayed if self.on == "replayed" else ~replayed)[:, None]
        rows = wanted.any(-1).nonzero()[:, 0]
        return Places(rows, wanted[rows].flatten().nonzero()[:, 0], wanted.flatten().nonzero()[:, 0])

    def along_rows(self, states: Tensor, gpt: DocumentMask, asked: Asked) -> Tensor:
        """This micro-batch's share of the step's mean divergence, shape (): the sum of all shares is the mean.

        Args:
            states: (B x T, D), what the head reads in the micro-batch, within the model's own call.
            gpt: the model.
            asked: of ``ask``, for the same micro-batch.
        """
        share, _ = linear_loss(states[asked.indices], gpt, Divergence(asked.base), 1 / asked.total.double())
        return share

    def along_own(self, gpt: DocumentMask, place: Place) -> Tensor:
        """The share of the step's texts that this micro-batch reads, shape (); a call of the model of its own."""
        assert self._own is not None
        texts, n = self._own.texts, self.texts_per_step
        numbers = draw(len(self._lengths), n, self._seed, STREAM, place.step)
        mine = numbers[place.part * n // place.n_parts : (place.part + 1) * n // place.n_parts]
        device = next(gpt.parameters()).device
        if not len(mine):
            if not is_sharded(gpt):
                return torch.zeros((), device=device)
            # all ranks gather the shards together, also for the gradient
            return gpt(torch.zeros(1, 1, dtype=torch.int64, device=device)).sum() * 0.0
        fed = [texts.tokens[texts.offsets[i] : texts.offsets[i + 1] - 1].astype(np.int64) for i in mine]
        tokens = nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in fed], batch_first=True)
        is_token = torch.arange(tokens.size(1)) < torch.from_numpy(self._lengths[mine])[:, None]
        tokens, indices = _sent(tokens, device), _sent(is_token.flatten().nonzero()[:, 0], device)
        if self._own.base is None:
            base = self._answers(gpt, {"tokens": tokens}, indices, 0)
        else:
            starts = texts.offsets[mine] - mine
            at = np.concatenate([np.arange(start, start + len(row)) for start, row in zip(starts, fed, strict=True)])
            ids, log_probs, log_rest = (_sent(torch.from_numpy(table[at]), device) for table in self._own.base)
            base = TopK(ids.long(), log_probs, log_rest)
        total = int(self._lengths[numbers].sum())

        def body(gpt: DocumentMask) -> Tensor:
            share, _ = linear_loss(gpt.states(tokens).flatten(0, 1)[indices], gpt, Divergence(base), 1 / total)
            return share

        return gpt(tokens, body=body)

    @torch.no_grad()
    def _answers(self, gpt: nn.Module, inputs: dict[str, Any], indices: Tensor, k: int) -> TopK | Tensor:
        """What the base predicts at positions, indices into the flattened batch: the ``k`` likeliest, or (P, V) all."""
        parts: list[Any] = []

        def body(gpt: DocumentMask) -> Tensor:
            states = gpt.document_states(**inputs).flatten(0, 1)[indices]
            for _, logits in logits_by_parts(states, gpt):
                parts.append(top_k(logits, min(k, logits.size(-1) - 1)) if k else logits.log_softmax(-1))
            return states

        with nullcontext() if self._base else self._as_base(gpt):  # type: ignore[misc]
            (self._base[0] if self._base else gpt)(inputs["tokens"], body=body)
        if not parts:  # of no position: asked for the sake of other ranks
            none = torch.empty(0, device=indices.device)
            return TopK(indices.view(0, 1), none.view(0, 1), none)
        return TopK(*map(torch.cat, zip(*parts, strict=True))) if k else torch.cat(parts)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    return (pinned(tensor) if device.type == "cuda" else tensor).to(device, non_blocking=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward needs all ranks; behind one, FSDP2's outermost parameters are no shards for a while."""
    return isinstance(model, FSDPModule)
