from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lit_consistency.analysis.core.states import place_names, pooled_states
from lit_consistency.analysis.core.texts import Text
from lit_consistency.analysis.probes import C_GRID, Labelled, Probes, divide, draw_clusters, fit_probe, labelled
from tests.analysis.models import nothing, subject, write_model

pytest.importorskip("sklearn")

VOCABULARY = {"vocab_size": 384, "padded_vocab_size": 384}
"""Of the world's tokenizer, 258 bytes and its words."""


@pytest.mark.parametrize("family", ["pythia-14m", "gemma-2b"])  # one that scales its embeddings
def test_states_are_those_of_each_sequence_alone(family: str, tmp_path: Path) -> None:
    """The loop over the blocks, written out, without padding and without hooks."""
    extra = {"n_query_groups": 1, "head_size": 8, "intermediate_size": 32} if family == "gemma-2b" else {}
    of = subject(write_model(tmp_path / "model", name=family, **extra))
    model, _, device = of.load()
    rng = np.random.default_rng(0)
    sequences = [rng.integers(2, 60, size=n) for n in (3, 20, 1, 7, 20)]
    pooled = pooled_states(model, sequences, 45, device)
    assert len(place_names(model.config.n_layer)) == len(pooled["mean"]) == 4
    for i, sequence in enumerate(sequences):
        tokens = torch.as_tensor(sequence)[None]
        x = model.transformer.wte(tokens)
        if model.config.scale_embeddings:
            x = x * model.config.n_embd**0.5
        states = [x]
        cos, sin = (table[: len(sequence)][None] for table in (model.cos, model.sin))
        for block in model.transformer.h:
            states.append(block(states[-1], cos, sin))
        states.append(model.transformer.ln_f(states[-1]))
        for place, expected in enumerate(states):
            for pool, values in (("last_token", expected[0, -1]), ("mean", expected[0].mean(0))):
                np.testing.assert_allclose(pooled[pool][place, i], values.numpy(), rtol=1e-4, atol=1e-5)


def test_the_probe_is_the_minimum_of_its_equation() -> None:
    """Written out with scipy's minimiser, for every C; the accuracies decide which one is taken."""
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=90)
    features = rng.normal(size=(90, 4)) * [1, 5, 0.1, 1] + labels[:, None] * [0.5, 1, 0, 0.2]
    sides = {"train": np.arange(50), "validation": np.arange(50, 70), "test": np.arange(70, 90)}
    mean, spread = features[:50].mean(0), features[:50].std(0)
    x = (features - mean) / spread
    best = (-1.0, 0.0, np.zeros(0))
    for c in C_GRID:

        def loss(flat: np.ndarray, c: float = c) -> float:
            weights, bias = flat[:12].reshape(4, 3), flat[12:]
            logits = x[:50] @ weights + bias
            logits -= logits.max(1, keepdims=True)
            log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            return float(0.5 * (weights**2).sum() - c * log_probs[np.arange(50), labels[:50]].sum())

        flat = minimize(loss, np.zeros(15), tol=1e-10).x
        predicted = (x @ flat[:12].reshape(4, 3) + flat[12:]).argmax(1)
        hits = predicted == labels
        if hits[50:70].mean() > best[0]:
            best = (hits[50:70].mean(), c, hits[70:].astype(float))
    probe = fit_probe(features, labels, sides)
    assert probe.accuracy["validation"] == best[0]
    assert probe.c == best[1]
    assert probe.converged
    np.testing.assert_array_equal(probe.hits, best[2])


def test_separable_classes_are_read_and_permuted_ones_are_not() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 150)
    features = np.concatenate([(2 * labels - 1)[:, None] * 3 + rng.normal(size=(300, 1)), np.ones((300, 1))], 1)
    order = rng.permutation(300)
    sides = {"train": order[:180], "validation": order[180:240], "test": order[240:]}
    assert fit_probe(features, labels, sides).accuracy["test"] > 0.95
    assert fit_probe(features, rng.permutation(labels), sides).accuracy["test"] == pytest.approx(0.5, abs=0.2)


def test_no_cluster_stands_on_two_sides_and_the_order_of_questions_does_not_matter() -> None:
    clusters = [str(i // 3) for i in range(90)]
    asked = Labelled([np.zeros(1)] * 90, np.arange(90) % 2, ["a", "b"], clusters)
    sides = divide(asked, 0, "task")
    names = {side: {clusters[i] for i in at} for side, at in sides.items()}
    assert {side: len(own) for side, own in names.items()} == {"train": 18, "validation": 6, "test": 6}
    assert len(set.union(*names.values())) == 30
    turned = asked._replace(labels=asked.labels[::-1], clusters=clusters[::-1])
    assert {turned.clusters[i] for i in divide(turned, 0, "task")["test"]} == names["test"]
    drawn = draw_clusters(asked, 20, 0)
    assert len(drawn.labels) == 18  # six clusters of three, as a seventh would be too many
    assert all(drawn.clusters.count(name) == 3 for name in drawn.clusters)


def test_a_chain_is_read_without_its_tag(tmp_path: Path) -> None:
    """100 sequences of two chains; the words of a sequence, not its last one, tell the chain of a random model."""
    of = subject(write_model(tmp_path / "model", **VOCABULARY))
    probes = Probes(tasks=["probes/markov/chain"])
    probes.check(of)
    asked = labelled(of.text("probes/markov/chain"), "answer")
    decode = of.load().tokenizer.decode
    tags = set(asked.classes)
    assert tags == {"BA", "BE"}
    assert not any(tags & set(decode(torch.as_tensor(tokens)).split()) for tokens in asked.tokens)
    rows = [{"model": "model", **row} for row in probes.measure(of, "probes/markov/chain", nothing)]
    of_place = {(row["pool"], row["place"]): row for row in rows}
    assert len(rows) == 2 * 4
    assert of_place["mean", "embedding"]["accuracy"] >= 0.8  # a bag of words
    assert of_place["mean", "embedding"]["accuracy"] > of_place["last_token", "embedding"]["accuracy"]
    assert all(row["n_train"] + row["n_validation"] + row["n_test"] == 100 for row in rows)
    assert all(row["selectivity"] == row["accuracy"] - row["control"] for row in rows)
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows)
    numbers = probes.summary(rows)
    layers = [row for row in rows if row["pool"] == "last_token" and row["layer"] > 0]
    best = max(row["validation_accuracy"] for row in layers)
    assert numbers["accuracy/best/probes/markov/chain"] in [
        r["accuracy"] for r in layers if r["validation_accuracy"] == best
    ]
    assert numbers["accuracy/final"] == of_place["last_token", "final norm"]["accuracy"]
    assert len(probes.figures(rows)) == 2


def test_the_answer_is_never_read(tmp_path: Path) -> None:
    of = subject(write_model(tmp_path / "model", **VOCABULARY))
    text = of.text("probes/markov/next")
    for question, item, tokens in zip(text.questions, text.items, labelled(text, "answer").tokens, strict=True):
        assert of.load().tokenizer.decode(torch.as_tensor(tokens)).strip() == question.prompt.strip()
        assert item.candidates[item.gold].tokens[: len(tokens)].tolist() == tokens.tolist()
        assert len(item.candidates[item.gold].tokens) == len(tokens) + 1


ROW = '{{"text": "{}", "label": "{}", "topic": "{}"}}\n'
WRONG = {
    "one class": (("ba be", "yes", "t"), "answer", "all 12 questions have the label 'yes'"),
    "no labels": (
        ("ba {}", "a{}", "t"),
        "answer",
        "12 questions of 12 classes; expected at least two",
    ),
    "no group": (("ba be", "yes", "t"), "group", "the task has no key `group`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_labelled_task_is_refused(case: str, tmp_path: Path) -> None:
    row, label, message = WRONG[case]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(ROW.format(*(part.format(i) for part in row)) for i in range(12)))
    task = tmp_path / "task.yaml"
    keys = f'kind: completion\ndata: {{path: {data}}}\nfields: {{"": "{{text}}"}}\ncompletion: "{{label}}"\n'
    task.write_text(keys)
    of = subject(write_model(tmp_path / "model", block_size=64, **VOCABULARY))
    with pytest.raises(ValueError, match=message):
        Probes(tasks=[str(task)], label=label).check(of)


def test_texts_are_labelled_by_their_group_and_classes_need_clusters(tmp_path: Path) -> None:
    """A text is read whole; clusters that are the groups themselves would leave no class on two sides."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(ROW.format("ba be", "x", "ab"[i % 2]) for i in range(12)))
    task = tmp_path / "task.yaml"
    task.write_text(f'kind: text\ndata: {{path: {data}}}\ngroup: "{{topic}}"\nmetrics: [nats_per_token]\n')
    of = subject(write_model(tmp_path / "model", **VOCABULARY))
    asked = labelled(of.text(str(task)), "group")
    assert asked.classes == ["a", "b"]
    assert len(set(asked.clusters)) == 12
    assert {len(tokens) for tokens in asked.tokens} == {len(of.text(str(task)).items[0].candidates[0].tokens)}
    nested = asked._replace(clusters=[f"{label}{i % 3}" for i, label in enumerate(asked.labels)])
    divide(nested, 0, "task")
    with pytest.raises(ValueError, match="12 questions in 2 clusters; expected at least 5"):
        divide(asked._replace(clusters=[str(label) for label in asked.labels]), 0, "task")
    own = asked._replace(labels=np.arange(12), classes=list("abcdefghijkl"))
    with pytest.raises(ValueError, match="every class stands in clusters of its own"):
        divide(own, 0, "task")


def test_a_question_with_prompts_of_its_own_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    row = '{"text": "ba", "label": "ba", "topic": "be", "right": %d}\n'
    data.write_text("".join(row % (i % 2) for i in range(12)))
    task = tmp_path / "task.yaml"
    keys = 'contexts: ["{label}", "{topic}"]\nchoices: ["{text}"]\ngold: "{right}"\n'
    task.write_text(f"kind: choice\ndata: {{path: {data}}}\n{keys}")
    of = subject(write_model(tmp_path / "model", **VOCABULARY))
    text: Text = of.text(str(task))
    with pytest.raises(ValueError, match="prompts of their own, which would tell the right one"):
        labelled(text, "answer")
