r"""Probes: how well a linear classifier reads labels from the frozen hidden states of every layer.

Every question of a labelled task is read up to its answer (a text as a whole), and the states of its last token, and
their mean over all tokens, are taken behind every block and behind the final norm. Clusters of questions (a person, a
document) are divided by the seed into training, validation and test, never one cluster on two sides. The states are
standardised by mean and standard deviation of the training part, and an L2-regularised multinomial logistic regression
is fitted,

.. math::
    \min_{W, b} \tfrac12 |W|_F^2 + C \sum_{i \in train} -\log softmax(W x_i + b)_{y_i},

with C in 1e-4, 1e-3, ..., 10, the one of highest validation accuracy, of several the smallest (scikit-learn's lbfgs).
Reported is the accuracy on the test part with its 95% interval by clusters, the balanced accuracy, and that of the
class that is most frequent in training (majority).

The label is the text of the right answer, or the task's ``group``. Nothing of the answer is read. Whether the label
can be told from the words alone is seen at the place ``embedding``, what enters the first block: its last token is
the last token of the question and nothing else, its mean is a bag of words. What a layer has beyond that is the
model's work. The best layer is chosen on the validation part among blocks and final norm, for each pool by itself.

Control: the same on labels permuted over all questions; selectivity is accuracy less the control's (Hewitt and Liang
2019, Designing and Interpreting Probes with Control Tasks, arXiv 1909.03368). Their control task gives every word a
label of its own, and words return in their test; here clusters do not return, so the control's test accuracy shows
chance, and what a probe can learn by heart is ``control_train``, its accuracy on its own training part.

Given up: probes that are not linear, and a second draw of the division: the interval is that of the questions alone.
Source: Han et al. 2026, Weight Decay Improves Language Model Plasticity, arXiv 2602.11137, who probe the last token.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.states import POOLS, place_names, pooled_states
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.texts import Text
from lit_consistency.drawing.charts.lines import Series, draw_lines
from lit_consistency.drawing.figure import WIDTH, Figure
from lit_consistency.drawing.scales import short_number
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.records.extras import require
from lit_consistency.records.fingerprints import seed_of
from lit_consistency.records.tables import Row
from lit_consistency.stats.intervals import by_class, estimate, ratio
from lit_consistency.tasks.text import TextTask

LABELS = ("answer", "group")
C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of sklearn's ``LogisticRegression``: from hardly any weight to hardly any penalty, for standardised states."""
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
MAX_ITER = 500


class Labelled(NamedTuple):
    """Labelled questions.

    Attributes:
        tokens: of each what is read, (T,) int64.
        labels: (S,) class of each, 0 .. K - 1.
        classes: K texts.
        clusters: of each, what it stands together with.
    """

    tokens: list[np.ndarray]
    labels: np.ndarray
    classes: list[str]
    clusters: list[str]


@dataclass(frozen=True)
class Probes(Analysis):
    """Probes.

    Args:
        tasks: labelled tasks of ``configs/evaluation``: ``agnews`` and ``sst2`` need their files; models of a world
            read those of ``configs/evaluation/probes``, as ``probes/markov/chain`` and ``probes/markov/next``,
            or ``probes/biographies/hobby`` and ``probes/biographies/major``.
        label: ``answer``, the text of the right answer; or ``group``, the task's key of this name.
        questions: of each task at most, whole clusters drawn by the seed; 0: all.
    """

    title: ClassVar[str] = "What linear probes read"

    tasks: list[str] = field(default_factory=lambda: ["agnews", "sst2"])
    label: str = "answer"
    questions: int = 2000

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks: expected at least one labelled task")
        if self.label not in LABELS:
            raise ValueError(f"label = {self.label!r}: expected one of {', '.join(LABELS)}")
        if self.questions < 0:
            raise ValueError(f"questions = {self.questions}: expected 0 (all) or more")

    def check(self, subject: Subject) -> None:
        """Every task must have labels, at least two, and enough questions to divide."""
        require("sklearn", "probes", "analysis")
        for task in self.tasks:
            asked = self._asked(subject, task)
            divide(asked, subject.seed, task)

    def inputs(self, subject: Subject) -> list[str]:
        """What is read of the tasks."""
        return [subject.text(task).fingerprint for task in self.tasks]

    def parts(self, subject: Subject) -> list[str]:
        """One a task."""
        return list(self.tasks)

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """A row for every pool and place."""
        asked = self._asked(subject, part)
        sides = divide(asked, subject.seed, part)
        permuted = np.random.default_rng(seed_of(subject.seed, "control", part)).permutation(asked.labels)
        loaded = subject.load()
        with evaluation_mode(loaded.model):
            states = pooled_states(
                loaded.model, asked.tokens, subject.batch_tokens, loaded.device, lambda share: advance(share / 4)
            )
        places = place_names(subject.model.config.n_layer)
        rows: list[Row] = []
        for pool in POOLS:
            for layer, place in enumerate(places):
                features = states[pool][layer].astype(np.float64)
                probe = fit_probe(features, asked.labels, sides)
                control = fit_probe(features, permuted, sides)
                own: Row = {"task": part, "pool": pool, "layer": layer, "place": place}
                rows.append({**own, **_numbers(asked, sides, probe, control)})
                advance(0.75 / len(places) / len(POOLS))
        return rows

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Best layer and final norm of every task, and their means over the tasks; of the last token, then the mean."""
        numbers: dict[str, float] = {}
        for pool in POOLS:
            chosen = {
                (where, task): row
                for task in dict.fromkeys(str(row["task"]) for row in rows)
                for where, row in _chosen([r for r in rows if r["task"] == task and r["pool"] == pool]).items()
            }
            prefix = "" if pool == "last_token" else f"{pool}/"
            for number in ("accuracy", "selectivity", "balanced_accuracy", "layer"):
                for where in ("best", "final"):
                    values = {task: float(row[number]) for (of, task), row in chosen.items() if of == where}
                    if number != "layer":
                        numbers[f"{prefix}{number}/{where}"] = sum(values.values()) / len(values)
                    elif where == "final":
                        continue
                    numbers |= {f"{prefix}{number}/{where}/{task}": value for task, value in values.items()}
        return numbers

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """Accuracy over the layers, one picture for each task and pool."""
        tasks = dict.fromkeys(str(row["task"]) for row in rows)
        return [
            _figure([row for row in rows if row["task"] == task and row["pool"] == pool], task, pool)
            for task in tasks
            for pool in POOLS
        ]

    def _asked(self, subject: Subject, task: str) -> Labelled:
        asked = labelled(subject.text(task), self.label)
        return draw_clusters(asked, self.questions, seed_of(subject.seed, "questions", task))


# -------------------- questions


def labelled(text: Text, label: str) -> Labelled:
    """The questions of a text with their labels.

    Args:
        text: of a task.
        label: ``answer`` or ``group``.

    Raises:
        ValueError: they have no labels, one class only, or hardly more questions than classes.
    """
    where = f"tasks: {text.name!r}"
    is_text = isinstance(text.prepared.task, TextTask)
    tokens, names, clusters = [], [], []
    for question, item in zip(text.questions, text.items, strict=True):
        starts = [int(np.argmax(c.supervised)) if c.supervised.any() else len(c.tokens) for c in item.candidates]
        answer = item.candidates[item.gold]
        read = answer.tokens if is_text else answer.tokens[: starts[item.gold]]
        others = [c.tokens[:start] for c, start in zip(item.candidates, starts, strict=True)]
        if not is_text and any(not np.array_equal(read, other) for other in others):
            raise ValueError(f"{where}: its answers have prompts of their own, which would tell the right one")
        if not len(read):
            raise ValueError(f"{where}: {question.place}: nothing stands before the answer; expected a question")
        if label == "group" and question.group is None:
            raise ValueError(f"{where}, label = 'group': the task has no key `group`; expected label = 'answer'")
        names.append(str(question.group) if label == "group" else question.labels[item.gold].strip())
        tokens.append(read)
        # where the group is the label, clusters that are the groups themselves would leave no class on two sides
        alone = question.id.rpartition("+")[0] if is_text else question.id
        clusters.append(alone if label == "group" and question.cluster == question.group else question.cluster)
    classes = sorted(set(names))
    if len(classes) < 2:
        raise ValueError(f"{where}, label = {label!r}: all {len(names)} questions have the label {classes[0]!r}")
    if len(names) < 2 * len(classes):
        kind = "its texts are no labels; " if is_text and label == "answer" else ""
        raise ValueError(
            f"{where}, label = {label!r}: {len(names)} questions of {len(classes)} classes; {kind}expected at least "
            "two questions a class"
        )
    number = {name: i for i, name in enumerate(classes)}
    return Labelled(tokens, np.asarray([number[name] for name in names]), classes, clusters)


def draw_clusters(asked: Labelled, n: int, seed: int) -> Labelled:
    """Whole clusters in an order drawn by the seed, until there are ``n`` questions; 0: all of them."""
    if not n or n >= len(asked.labels):
        return asked
    order = shuffled_clusters(asked.clusters, seed)
    sizes = Counter(asked.clusters)
    ends = np.cumsum([sizes[name] for name in order])
    kept = set(order[: max(int(np.searchsorted(ends, n, side="right")), 1)])
    at = [i for i, name in enumerate(asked.clusters) if name in kept]
    return Labelled([asked.tokens[i] for i in at], asked.labels[at], asked.classes, [asked.clusters[i] for i in at])


def shuffled_clusters(clusters: Sequence[str], seed: int) -> list[str]:
    """Names of all clusters in an order drawn by the seed; the order of the questions does not matter."""
    names = sorted(set(clusters))
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def divide(asked: Labelled, seed: int, task: str) -> dict[str, np.ndarray]:
    """Numbers of the questions of every part in ``SHARES``, by clusters.

    Raises:
        ValueError: too few clusters, or none of the tested classes is there in training.
    """
    order = shuffled_clusters(asked.clusters, seed_of(seed, "division", task))
    if len(order) < 5:
        raise ValueError(
            f"tasks: {task!r}: {len(asked.labels)} questions in {len(order)} clusters; expected at least 5 clusters "
            "to divide into training, validation and test"
        )
    edges = np.round(np.cumsum([0, *SHARES.values()]) * len(order)).astype(int)
    side_of = {
        name: side
        for side, start, stop in zip(SHARES, edges[:-1], edges[1:], strict=True)
        for name in order[start:stop]
    }
    sides = {side: np.asarray([i for i, c in enumerate(asked.clusters) if side_of[c] == side]) for side in SHARES}
    trained = set(asked.labels[sides["train"]].tolist())
    if len(trained) < 2:
        raise ValueError(
            f"tasks: {task!r}: one class only ({asked.classes[trained.pop()]!r}) in the {len(sides['train'])} "
            "questions for training; expected more questions"
        )
    if not trained & set(asked.labels[sides["test"]].tolist()):
        raise ValueError(
            f"tasks: {task!r}: every class stands in clusters of its own, so that none of those tested is there in "
            "training; expected clusters that are smaller than a class (key `cluster`)"
        )
    return sides


# -------------------- the probe


class Probe(NamedTuple):
    """A fitted probe.

    Attributes:
        c: chosen.
        accuracy: part -> share of right answers.
        hits: (n_test,) 1 where the test question is right.
        converged: whether the solver ended by its tolerance.
    """

    c: float
    accuracy: dict[str, float]
    hits: np.ndarray
    converged: bool


def fit_probe(features: np.ndarray, labels: np.ndarray, sides: dict[str, np.ndarray]) -> Probe:
    """Standardise, fit for every C, choose one.

    Args:
        features: (S, D) float64.
        labels: (S,) class numbers.
        sides: part -> numbers of its questions.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train = features[sides["train"]]
    spread = train.std(0)
    # a feature that never changes tells nothing: it is 0, not divided by 0
    scaled = (features - train.mean(0)) / np.where(spread > 0, spread, 1)
    model: Any = LogisticRegression(max_iter=MAX_ITER, warm_start=True)
    best: Probe | None = None
    for c in C_GRID:
        # every C starts from the weights of the one before, which costs a third of starting anew
        model.set_params(C=c)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told by the column `converged`
            model.fit(scaled[sides["train"]], labels[sides["train"]])
        hits = {side: model.predict(scaled[at]) == labels[at] for side, at in sides.items()}
        accuracy = {side: float(own.mean()) for side, own in hits.items()}
        if best is None or accuracy["validation"] > best.accuracy["validation"]:
            converged = bool(np.max(model.n_iter_) < MAX_ITER)
            best = Probe(c, accuracy, hits["test"].astype(np.float64), converged)
    assert best is not None
    return best


def _numbers(asked: Labelled, sides: dict[str, np.ndarray], probe: Probe, control: Probe) -> Row:
    test, classes = sides["test"], asked.labels[sides["test"]]
    clusters = [asked.clusters[i] for i in test]
    single = None if len(set(clusters)) == len(clusters) else clusters
    accuracy = estimate(ratio(probe.hits), single, share=True)
    balanced = estimate(by_class(probe.hits, classes.tolist()), single, share=True)
    most_frequent = np.bincount(asked.labels[sides["train"]]).argmax()
    return {
        "n_classes": len(asked.classes),
        **{f"n_{side}": len(at) for side, at in sides.items()},
        "C": probe.c,
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "balanced_accuracy": balanced.value,
        "balanced_low": balanced.low,
        "balanced_high": balanced.high,
        "validation_accuracy": probe.accuracy["validation"],
        "train_accuracy": probe.accuracy["train"],
        "majority": float((classes == most_frequent).mean()),
        "control": control.accuracy["test"],
        "control_train": control.accuracy["train"],
        "selectivity": accuracy.value - control.accuracy["test"],
        "converged": int(probe.converged),
    }


# -------------------- what is shown


def _chosen(rows: Sequence[Row]) -> dict[str, Row]:
    """``best`` by validation accuracy among blocks and final norm, the first of several; and ``final``."""
    layers = sorted((row for row in rows if row["place"] != "embedding"), key=lambda row: int(row["layer"]))
    best = max(layers, key=lambda row: float(row["validation_accuracy"]))
    return {"best": best, "final": layers[-1]}


def _figure(rows: Sequence[Row], task: str, pool: str) -> Figure:
    models = dict.fromkeys(str(row["model"]) for row in rows)
    of = {m: sorted((r for r in rows if r["model"] == m), key=lambda r: int(r["layer"])) for m in models}
    series = [
        Series(
            model,
            [(float(row["layer"]), float(row["accuracy"])) for row in own],
            [float(row["low"]) for row in own],
            [float(row["high"]) for row in own],
        )
        for model, own in of.items()
    ]
    levels = {"majority": float(rows[0]["majority"])}
    n, k = rows[0]["n_test"], rows[0]["n_classes"]
    said = "its last token" if pool == "last_token" else "the mean of its tokens"
    caption = (
        f"Share of {n} questions that are put into the right one of {k} classes, read from the state of {said}; shaded "
        "95% intervals. Layer 0 is what enters the first block, the last one the final norm."
    )
    table = [
        (m, str(r["place"]), *(short_number(float(r[key])) for key in ("accuracy", "low", "high", "control")))
        for m, own in of.items()
        for r in own
    ]
    canvas = draw_lines(series, "layer", "accuracy", WIDTH, levels=levels)
    columns = ("model", "place", "accuracy", "low", "high", "control")
    return Figure("", "", f"{task}, {pool.replace('_', ' ')}", caption, canvas, None, columns, tuple(table))
