r"""KL: how far predictions have moved from the base's, in both directions, and at which tokens and documents.

At every scored position of a text, with p of the base and q of the model over the whole vocabulary,

.. math::
    forward = KL(p || q) = \sum_v p_v \log \frac{p_v}{q_v}, \qquad reverse = KL(q || p),

in nats, along the text (of questions along their right answers); inference/kl.py has the definitions and their
source. Means are over positions; intervals are of documents, which are drawn together (stats/intervals.py).

- Where it sits: by position in the document (from its start, also where it is read in windows), by true token, by
  document. Concentration is the share of the whole forward divergence that the top 1% of positions hold: 0.01 where
  all are alike.
- The most changed positions with their text: what both models take for most probable, and the true token.
- Agreement: the share of positions at which both have the same most probable token. Of tasks with several candidates
  also the share of questions to which both give the same one, by the task's own rule.

Given up: text that the model itself would write. Tables hold the ``tokens`` and ``changed`` with the largest share,
documents all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.divergence import Divergences, divergences, share_of_largest
from lit_consistency.analysis.core.figures import table_of
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.texts import Text
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.drawing.charts.dots import Dot, draw_dots
from lit_consistency.drawing.charts.lines import Series, draw_lines
from lit_consistency.drawing.figure import WIDE, WIDTH, Figure
from lit_consistency.records.tables import Row
from lit_consistency.stats.intervals import Estimate, estimate, ratio
from lit_consistency.tasks.text import TextTask

SHARES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Of the positions, largest first, of which it is said how much they hold."""
TOP = 0.01
BINS = 32
"""Stretches of the longest document, at most."""
SHOWN = 12
"""Rows of a picture; its table has them all."""


class _Read(NamedTuple):
    """A text and both models' predictions on it."""

    text: Text
    at: Divergences
    tokenizer: Tokenizer
    documents: np.ndarray  # (P,) of every position


@dataclass(frozen=True)
class KL(Analysis):
    """KL.

    Args:
        changed: how many of the most changed positions are shown with their text.
        context: tokens before such a position that are shown.
        by: which divergence ranks them, ``forward`` or ``reverse``.
        tokens: how many tokens of the vocabulary are listed, those that hold most of the divergence.
    """

    title: ClassVar[str] = "Divergence from the base"
    needs_base: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True

    changed: int = 100
    context: int = 24
    by: Literal["forward", "reverse"] = "forward"
    tokens: int = 100

    def __post_init__(self) -> None:
        for key, least in (("changed", 0), ("context", 1), ("tokens", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{key} = {getattr(self, key)}: expected at least {least}")
        if self.by not in ("forward", "reverse"):
            raise ValueError(f"by = {self.by!r}: expected forward or reverse")

    def check(self, subject: Subject) -> None:
        """Both models must read the same tokens."""
        subject.check_same_tokens(subject.origin)

    def parts(self, subject: Subject) -> list[str]:
        """One a text."""
        return list(dict.fromkeys(subject.texts))

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """Rows of several kinds, told apart by ``of``: text, share, position, token, document, changed."""
        text, loaded, base = subject.text(part), subject.load(), subject.load(subject.origin)
        at = divergences(
            base.model, loaded.model, text.rows, n_vocab=subject.model.config.padded_vocab_size,
            batch_tokens=subject.batch_tokens, device=loaded.device, advance=advance,
        )  # fmt: skip
        read = _Read(text, at, loaded.tokenizer, np.asarray(text.clusters)[at.rows.numpy()])
        rows: list[Row] = [
            _whole(read) | _same_choice(subject, text),
            *_by_share(at),
            *_by_position(read),
            *_by_token(read, self.tokens),
            *_by_document(read),
            *_most_changed(read, self.changed, self.context, getattr(at, self.by)),
        ]
        return [{"text": part, **row} for row in rows]

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Of every text."""
        numbers: dict[str, float] = {}
        for row in rows:
            if row["of"] == "text":
                text = row["text"]
                numbers |= {f"{key}/{text}": float(row[key]) for key in ("forward", "reverse", "agreement")}
                numbers[f"concentration/{text}"] = float(row["concentration"])
                if "same_choice" in row:
                    numbers[f"same_choice/{text}"] = float(row["same_choice"])
        return numbers

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """All models in one picture; tokens and changed positions of the last model."""
        last = [row for row in rows if row["model"] == rows[-1]["model"]]
        drawn: list[Figure | None] = [_text_figure(rows), _agreement_figure(rows)]
        for text in dict.fromkeys(str(row["text"]) for row in rows):
            own, own_last = ([row for row in some if row["text"] == text] for some in (rows, last))
            drawn += [
                _line_figure(own, text, "share"), _line_figure(own, text, "position"),
                _token_figure(own_last, text), _changed_figure(own_last, text),
            ]  # fmt: skip
        return [figure for figure in drawn if figure is not None]


# -------------------- numbers


def _mean(values: Tensor, read: _Read, share: bool = False) -> Estimate:
    """Over positions, its interval over documents: sums of each are enough."""
    names, member = np.unique(read.documents, return_inverse=True)
    sums = np.bincount(member, values.double().numpy(), len(names))
    return estimate(ratio(sums, np.bincount(member, minlength=len(names))), share=share)


def _with_interval(name: str, value: Estimate) -> Row:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def _whole(read: _Read) -> Row:
    at = read.at
    same = (at.base_top == at.model_top).double()
    return {
        "of": "text",
        "positions": len(at.forward),
        "documents": len(np.unique(read.documents)),
        **_with_interval("forward", _mean(at.forward, read)),
        **_with_interval("reverse", _mean(at.reverse, read)),
        **_with_interval("agreement", _mean(same, read, share=True)),
        "concentration": share_of_largest(at.forward, TOP),
        "base_nats_per_token": -float(at.base_log_prob.mean()),
        "model_nats_per_token": -float(at.model_log_prob.mean()),
    }


def _same_choice(subject: Subject, text: Text) -> Row:
    """Share of questions with one answer of both; nothing where there is nothing to choose from."""
    if max(len(item.candidates) for item in text.items) < 2:
        return {}
    first, second = (
        text.measure(loaded.model, subject.batch_tokens, loaded.device).predictions
        for loaded in (subject.load(subject.origin), subject.load())
    )
    same = ratio([float(a == b) for a, b in zip(first, second, strict=True)])
    return _with_interval("same_choice", estimate(same, [q.cluster for q in text.prepared.encoded.questions], True))


def _by_share(at: Divergences) -> list[Row]:
    return [{"of": "share", "share": share, "held": share_of_largest(at.forward, share)} for share in SHARES]


def _positions(read: _Read) -> Tensor:
    """(P,) number of the true token in its document, from 0; of questions in their answer."""
    at = read.at
    starts = torch.zeros(len(read.text.rows), dtype=torch.int64)
    if isinstance(read.text.prepared.task, TextTask):
        # a window is named by its document and the token at which it starts
        starts = torch.tensor([int(question.id.rpartition("+")[2]) for question in read.text.questions])
    first = torch.ones(len(at.rows), dtype=torch.bool)
    first[1:] = at.rows[1:] != at.rows[:-1]
    number = torch.arange(len(at.rows))
    return starts[at.rows] + number - number[first][first.cumsum(0) - 1]


def _by_position(read: _Read) -> list[Row]:
    positions = _positions(read)
    width = -(-(int(positions.max()) + 1) // BINS)
    bins, counts = positions // width, torch.bincount(positions // width)
    sums = [torch.bincount(bins, values) for values in (read.at.forward, read.at.reverse)]
    return [
        {
            "of": "position", "start": i * width, "stop": (i + 1) * width, "positions": int(counts[i]),
            "forward": float(sums[0][i] / counts[i]), "reverse": float(sums[1][i] / counts[i]),
        }
        for i in counts.nonzero()[:, 0].tolist()
    ]  # fmt: skip


def _by_token(read: _Read, n_listed: int) -> list[Row]:
    """True tokens by the share of the whole forward divergence that stands before them."""
    at, total = read.at, float(read.at.forward.sum())
    counts = torch.bincount(at.targets)
    forward, reverse = (torch.bincount(at.targets, values) for values in (at.forward, at.reverse))
    listed = forward.argsort(descending=True, stable=True)[:n_listed].tolist()
    return [
        {
            "of": "token", "token_id": i, "token": _quoted(read.tokenizer, [i]), "positions": int(counts[i]),
            "forward": float(forward[i] / counts[i]), "reverse": float(reverse[i] / counts[i]),
            "share": float(forward[i]) / total if total > 0 else math.nan,
        }
        for i in listed
        if counts[i]
    ]  # fmt: skip


def _by_document(read: _Read) -> list[Row]:
    names, member = np.unique(read.documents, return_inverse=True)
    counts = np.bincount(member)
    same = (read.at.base_top == read.at.model_top).double()
    forward, reverse, agreed = (np.bincount(member, v.numpy()) for v in (read.at.forward, read.at.reverse, same))
    total = forward.sum()
    return [
        {
            # quoted, as a name that looks like a number would be read as one
            "of": "document", "document": json.dumps(str(names[i]), ensure_ascii=False), "positions": int(counts[i]),
            "forward": float(forward[i] / counts[i]), "reverse": float(reverse[i] / counts[i]),
            "agreement": float(agreed[i] / counts[i]), "share": float(forward[i] / total) if total > 0 else math.nan,
        }
        for i in np.argsort(-forward, kind="stable")
    ]  # fmt: skip


def _most_changed(read: _Read, n_shown: int, n_context: int, by: Tensor) -> list[Row]:
    at, where = read.at, _positions(read)
    rows: list[Row] = []
    for rank, i in enumerate(by.argsort(descending=True, stable=True)[:n_shown].tolist(), start=1):
        tokens, column = read.text.rows[int(at.rows[i])][0], int(at.columns[i])
        rows.append({
            "of": "changed", "rank": rank, "forward": float(at.forward[i]), "reverse": float(at.reverse[i]),
            "document": json.dumps(str(read.documents[i]), ensure_ascii=False), "position": int(where[i]),
            "context": _quoted(read.tokenizer, tokens[max(column + 1 - n_context, 0) : column + 1].tolist()),
            "true": _quoted(read.tokenizer, [int(at.targets[i])]),
            "true_base": math.exp(at.base_log_prob[i]), "true_model": math.exp(at.model_log_prob[i]),
            "base_top": _quoted(read.tokenizer, [int(at.base_top[i])]),
            "base_top_probability": math.exp(at.base_top_log_prob[i]),
            "model_top": _quoted(read.tokenizer, [int(at.model_top[i])]),
            "model_top_probability": math.exp(at.model_top_log_prob[i]),
        })  # fmt: skip
    return rows


def _quoted(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Text in quotation marks, which show its spaces and keep ``nan`` or ``7`` from being read as numbers.

    A control token alone has no text; its name is shown.
    """
    text = tokenizer.decode(torch.tensor(tokens))
    if not text and len(tokens) == 1 and tokenizer.backend == "huggingface":
        text = tokenizer.processor.id_to_token(tokens[0]) or ""
    return json.dumps(text, ensure_ascii=False)


# -------------------- pictures


def _text_figure(rows: Sequence[Row]) -> Figure:
    own = [row for row in rows if row["of"] == "text"]
    dots = [
        Dot(f"{row['text']}, {way}", str(row["model"]), *(float(row[way + end]) for end in ("", "_low", "_high")))
        for row in own
        for way in ("forward", "reverse")
    ]
    columns = ("model", "text", "forward", "forward_low", "forward_high", "reverse", "reverse_low", "reverse_high")
    return Figure(
        "", "", "KL to the base",
        "Mean over positions with 95% intervals over documents; forward KL(base || model), reverse KL(model || base).",
        draw_dots(dots, "nats per position", WIDTH), None, columns, table_of(own, columns),
    )  # fmt: skip


def _agreement_figure(rows: Sequence[Row]) -> Figure:
    own = [row for row in rows if row["of"] == "text"]
    dots = [
        Dot(f"{row['text']}{said}", str(row["model"]), *(float(row[key + end]) for end in ("", "_low", "_high")))
        for row in own
        for key, said in (("agreement", ""), ("same_choice", ", answers"))
        if key in row
    ]
    columns = ("model", "text", "positions", "agreement", "same_choice", "base_nats_per_token", "model_nats_per_token")
    return Figure(
        "", "", "Agreement with the base",
        "Share of positions at which the most probable token is the same, and of questions with the same answer.",
        draw_dots(dots, "share", WIDTH), None, columns, table_of(own, columns),
    )  # fmt: skip


LINES = {
    "share": ("Concentration", "share", "held", "share of positions", "share of the divergence",
              "How much of the forward divergence the most changed positions hold."),
    "position": ("KL over the document", "start", "forward", "position in the document", "nats per position",
                 "Mean forward divergence over stretches of the document, by where they start."),
}  # fmt: skip


def _line_figure(rows: Sequence[Row], text: str, of: str) -> Figure:
    title, x, y, x_title, y_title, caption = LINES[of]
    own = [row for row in rows if row["of"] == of]
    models = dict.fromkeys(str(row["model"]) for row in own)
    series = [Series(name, [(float(row[x]), float(row[y])) for row in own if row["model"] == name]) for name in models]
    columns = ("model", x, y)
    picture = draw_lines(series, x_title, y_title, WIDTH, log_x=of == "share")
    return Figure("", "", f"{title}, {text}", caption, picture, None, columns, table_of(own, columns))


def _token_figure(rows: Sequence[Row], text: str) -> Figure | None:
    own = [row for row in rows if row["of"] == "token"]
    if not own:
        return None
    dots = [Dot(str(row["token"]), "", float(row["share"])) for row in own[:SHOWN]]
    columns = ("token", "token_id", "positions", "forward", "reverse", "share")
    return Figure(
        "", "", f"Tokens that hold it, {text}",
        f"True tokens by their share of the forward divergence, {own[0]['model']}; the first {len(dots)}.",
        draw_dots(dots, "share of the divergence", WIDTH), None, columns, table_of(own, columns),
    )  # fmt: skip


def _changed_figure(rows: Sequence[Row], text: str) -> Figure | None:
    own = [row for row in rows if row["of"] == "changed"]
    if not own:
        return None
    dots = []
    for row in own[:SHOWN]:
        # the end of the context, behind which the two differ
        end = json.loads(str(row["context"]))[-16:].replace("\n", "↵")
        before, after = (f"{row[f'{who}_top']} {float(row[f'{who}_top_probability']):.2f}" for who in ("base", "model"))
        place = f"{row['rank']}. …{end}: {before} → {after}, true {row['true']}"
        dots += [Dot(place, way, float(row[way])) for way in ("forward", "reverse")]
    columns = (
        "rank", "context", "true", "true_base", "true_model", "base_top", "base_top_probability", "model_top",
        "model_top_probability", "forward", "reverse", "document", "position",
    )  # fmt: skip
    return Figure(
        "", "", f"Most changed positions, {text}",
        f"Most probable token of the base → of {own[0]['model']}, with their probabilities; the first "
        f"{len(own[:SHOWN])} of {len(own)}, which stand below with their contexts.",
        draw_dots(dots, "nats", WIDE), None, columns, table_of(own, columns),
    )  # fmt: skip
