"""KL divergence from the base along the right answers of the watched tasks, with its error.

Positions are spread over all items of the learned tasks, and over all of the retained ones: all of them where the
base's predictions fit into memory (half of ``inference.kl.MEMORY`` for either kind), else as many as do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import nn

from lit_consistency.distributed.fsdp import weights_of
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.inference.kl import MEMORY, KLToBase
from lit_consistency.module import LitLanguageModel
from lit_consistency.stats.intervals import estimate, ratio
from lit_consistency.tasks.watched import PreparedTask

TOTALS = {"learn": "kl_to_base", "retain": "kl_to_base_retained"}
"""Names of the divergence over all tasks of a kind."""


@contextmanager
def at_start(trainer: Trainer, module: LitLanguageModel) -> Iterator[None]:
    """The weights of the run's start, in evaluation mode; afterwards the model as it is now, bit for bit."""
    start = nullcontext() if trainer.global_step == 0 else weights_of(module.gpt, module.start.shards)
    with evaluation_mode(module), trainer.precision_plugin.forward_context(), start:
        yield


class _Kind(NamedTuple):
    """The divergence along the items of the tasks of a kind; of every item the task's name and the cluster."""

    kl: KLToBase
    names: np.ndarray
    clusters: np.ndarray


class Divergence:
    """Divergence of a model from its base along the watched tasks.

    Args:
        tasks: ``KIND/NAME`` -> the task.
        n_vocab: V, of the model.
        n_positions: positions of either kind; None takes all that fit into memory.
        batch_tokens: budget of padded tokens in one forward.
        device: where the model is.
    """

    def __init__(
        self,
        tasks: Mapping[str, PreparedTask],
        *,
        n_vocab: int,
        n_positions: int | None,
        batch_tokens: int,
        device: torch.device,
    ) -> None:
        self.kinds: dict[str, _Kind] = {}
        for kind in TOTALS:
            asked = [
                (name, f"{name} {question.cluster}", question.item)
                for key, task in tasks.items()
                for name in [key.split("/", 1)[1]]
                if key.startswith(f"{kind}/")
                for question in task.encoded.questions
                if question.item is not None
            ]
            if asked:
                names, clusters, items = zip(*asked, strict=True)
                kl = KLToBase(
                    items,
                    n_vocab=n_vocab,
                    n_positions=n_positions,
                    memory=MEMORY // 2,
                    batch_tokens=batch_tokens,
                    device=device,
                )
                self.kinds[kind] = _Kind(kl, np.asarray(names), np.asarray(clusters))

    def read_base(self, model: nn.Module) -> None:
        """Keep what the base predicts; the caller has put it into evaluation mode."""
        for kind in self.kinds.values():
            kind.kl.read_base(model)

    def numbers(self, model: nn.Module | None) -> dict[str, float]:
        """Means over positions in nats, with standard errors by the tasks' clusters.

        Args:
            model: in evaluation mode; None: the base itself, which need not have been read.

        Returns:
            ``kl_to_base`` and ``reverse_kl_to_base`` over the learned tasks, ``kl_to_base_retained`` and
            ``reverse_kl_to_base_retained`` over the others, and the same with ``/NAME`` for every task.
        """
        numbers: dict[str, float] = {}
        for name, kind in self.kinds.items():
            terms = kind.kl.terms_of_base() if model is None else kind.kl.terms(model)
            forward, reverse, counts = (sums.double().numpy() for sums in terms.by_item())
            present = terms.items.unique().numpy()
            names, clusters = kind.names[present], kind.clusters[present]
            for direction, sums in (("", forward), ("reverse_", reverse)):
                total = f"{direction}{TOTALS[name]}"
                parts = [(total, np.ones(len(present), dtype=bool))]
                parts += [(f"{direction}kl_to_base/{task}", names == task) for task in dict.fromkeys(names.tolist())]
                for tag, members in parts:
                    mean = estimate(ratio(sums[members], counts[members]), clusters[members].tolist())
                    numbers |= {tag: mean.value, f"{tag}.stderr": mean.stderr}
        return numbers
