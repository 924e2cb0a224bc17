"""The loss of a text as it is asked again and again while a model is moved: items, so that changes are paired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lit_consistency.analysis.core.subject import Subject
from lit_consistency.records.tables import Row
from lit_consistency.stats.intervals import Estimate, Ratio, estimate, paired_difference, ratio
from lit_consistency.tasks.measured import clusters_of

UNKNOWN = Estimate(math.nan, math.nan, math.nan, math.nan)


class TextLoss(NamedTuple):
    """The loss of one model on one text.

    Attributes:
        items: negative log-likelihood in nats and scored tokens of every item.
        clusters: what is drawn together, as windows of one document; None: every item stands alone.
    """

    items: Ratio
    clusters: Sequence[str] | None = None

    def estimate(self) -> Estimate:
        """Nats per scored token, with the interval over documents; NaN where a weight is so large that none is left."""
        return estimate(self.items, self.clusters) if _finite(self.items) else UNKNOWN

    def rise_from(self, start: TextLoss) -> Estimate:
        """Nats per token above ``start``, of the same items: most of their spread is common to both."""
        if not (_finite(self.items) and _finite(start.items)):
            return UNKNOWN
        # documents differ far more from one another than a document from itself under another model
        return paired_difference(start.items, self.items, self.clusters)


def _finite(items: Ratio) -> bool:
    return bool(np.isfinite(items.numerator).all())


def text_loss(subject: Subject, name: str) -> TextLoss:
    """Loss of the loaded model, with the weights that it has now.

    Args:
        subject: whose model it is.
        name: of the text.
    """
    loaded, text = subject.load(), subject.text(name)
    nll, n_tokens = text.nll(loaded.model, subject.batch_tokens, loaded.device)
    return TextLoss(ratio(nll.numpy(), n_tokens.numpy()), clusters_of(text.questions))


def loss_row(subject: Subject, name: str, metric: bool) -> Row:
    """``nats_per_token`` of the model as it is now, with its interval; with ``metric`` the task's own number too.

    Args:
        subject: whose model it is.
        name: of the text.
        metric: whether the task is measured as ``evaluate`` does: ``metric`` names the number by which it is judged.
    """
    row: Row = {"text": name, **_columns("nats_per_token", text_loss(subject, name).estimate())}
    if metric:
        loaded, text = subject.load(), subject.text(name)
        judged = text.prepared.metric
        value = text.measure(loaded.model, subject.batch_tokens, loaded.device).estimates()[judged]
        row |= {"metric": judged, **_columns("value", value)}
    return row


def _columns(name: str, value: Estimate) -> Row:
    numbers = {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    # tables hold NaN for what is no number, infinite ones among them
    return {key: number if math.isfinite(number) else math.nan for key, number in numbers.items()}
