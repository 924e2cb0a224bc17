r"""How long weight decay lets a model remember its updates, in passes over the data of its training.

AdamW with decoupled weight decay is an exponential moving average of its updates: every step shrinks the weights by
1 - lr lambda, so that an update fades to 1/e in 1 / (lr lambda) steps (Wang and Aitchison 2024, arXiv 2405.13698). As a
share of the whole training, with B tokens a step and D tokens in all (Bergsma et al. 2025, Power Lines, arXiv
2505.13738, where one epoch is D),

.. math::
    \tau = \frac{B}{lr \; \lambda \; D}.

The rate is the one that is configured, the peak of the schedule; of Muon rate and decay are those of the hidden
matrices. D is what the model has seen of its last training, so that a model taken halfway has twice the tau of the
last one. The decay of SGD goes through its momentum, which adds up to 1 / (1 - momentum) times the rate; in its case
nothing divides the update by its size, and tau is the time scale of the decay alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lit_consistency.analysis.core.model_files import ModelFiles


def tau(files: ModelFiles) -> float:
    """Time scale of the model's last training, in passes over its data; NaN without weight decay or provenance."""
    return tau_of_stage(files.provenance.stages[-1]) if files.provenance else math.nan


def tau_of_pretraining(files: ModelFiles) -> float:
    """The same of the training that started from random weights; NaN where that is not known."""
    stages = files.provenance.stages if files.provenance else []
    return tau_of_stage(stages[0]) if stages and stages[0].get("base") is None else math.nan


def tau_of_stage(stage: Mapping[str, Any]) -> float:
    """Time scale of one stage.

    Args:
        stage: with the keys of ``records.provenance.Provenance``.
    """
    options = stage.get("optimizer_options") or {}
    rate, decay = options.get("lr"), options.get("weight_decay")
    steps, tokens = stage.get("steps") or 0, stage.get("tokens") or 0
    if not rate or not decay or not steps or not tokens:
        return math.nan
    if stage.get("optimizer") == "SGD":
        rate = rate / (1 - (options.get("momentum") or 0.0))
    tokens_per_step = tokens / steps
    return float(tokens_per_step / (rate * decay * tokens))
