from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_consistency.analysis.core.model_files import ModelFiles
from lit_consistency.analysis.core.run import Options, analyze
from lit_consistency.analysis.core.subject import Shared, Subject
from lit_consistency.analysis.core.texts import Reading
from lit_consistency.analysis.memorization import Memorization, common_loss, crossing, curves, readings, value_at
from lit_consistency.data.tokens.tokenizer import write_tokenizer
from lit_consistency.data.worlds import ModularArithmetic
from lit_consistency.records.provenance import Provenance
from tests.analysis.models import nothing, write_model

WORLD = {"p": 7, "noise_share": 0.3}
VOCABULARY = {"vocab_size": 384, "padded_vocab_size": 384}


def model_of_the_world(folder: Path, seed: int, run: str = "run", p: int = 7) -> Path:
    """Random weights, named as step ``10 (seed + 1)`` of a run."""
    if not (folder.parent / "tokenizer").is_dir():
        (folder.parent / "tokenizer").mkdir(parents=True)
        write_tokenizer(ModularArithmetic(p=p).tokenizer(), folder.parent / "tokenizer")
    write_model(folder, seed, **VOCABULARY)
    Provenance("pythia-14m", "AdamW", "full", "pretrain", steps=10 * (seed + 1), run=run).write(folder)
    return folder


def subject_of(*models: Path) -> Subject:
    files = [ModelFiles(model) for model in models]
    return Subject(files[-1], None, files, [], Shared("cpu", "auto", Reading(world=WORLD)))


def test_what_is_known_is_what_the_model_says_first(tmp_path: Path) -> None:
    """Every problem by itself, from the world's own questions; the words of the world, token by token."""
    of = subject_of(model_of_the_world(tmp_path / "model", 0))
    rows = {row["set"]: row for row in Memorization().measure(of, "model", nothing)}
    model, tokenizer, _ = of.load()
    world = ModularArithmetic(**WORLD)
    for name, probes in (("clean", "train_clean"), ("noisy", "train_noisy"), ("held_out", "held_out")):
        hits, nats = [], []
        for question in world.probes(probes):
            logits = model(tokenizer.encode(question.prompt)[None].long())[0, -1].double()
            answer = int(tokenizer.encode(question.answer.strip())[0])
            hits.append(int(logits.argmax()) == answer)
            nats.append(-float(torch.log_softmax(logits, -1)[answer]))
        assert rows[name]["n"] == len(hits)
        assert rows[name]["accuracy"] == pytest.approx(np.mean(hits))
        assert rows[name]["nats_per_answer"] == pytest.approx(np.mean(nats), rel=1e-5)


CURVE = {
    "step": [10.0, 20.0, 40.0, 80.0],
    "clean": [0.1, 0.4, 0.8, 1.0],
    "noisy": [0.0, 0.2, 0.6, 0.7],
    "held_out": [0.5, 0.5, 0.3, 0.6],
    "train_loss": [4.0, 3.0, 1.0, 0.5],
}


def test_readings_on_straight_lines() -> None:
    """Worked out by hand: clean crosses .5 a quarter of the way from step 20 to 40, .9 half of the way to 80."""
    numbers = readings(CURVE, 2.0)
    expected = {
        "step_half/clean": 25,
        "step_90/clean": 60,
        "step_half/noisy": 35,
        "step_half/held_out": 10,  # the first model knows it already
        "pattern_at/clean_90": 0.45,
        "rote_at/clean_90": 0.65,
        "pattern_at/noisy_50": 0.35,
        "pattern_at/train_loss": 0.4,
        "rote_at/train_loss": 0.4,
        "final/held_out": 0.6,
    }
    assert {key: numbers[key] for key in expected} == {key: pytest.approx(value) for key, value in expected.items()}
    assert math.isnan(numbers["step_90/noisy"])
    assert math.isnan(readings(CURVE, 0.1)["pattern_at/train_loss"])


@pytest.mark.parametrize("level", [0.15, 0.4, 0.41, 0.79, 0.8, 0.99, 1.0])
def test_the_crossing_is_numpys_where_values_rise(level: float) -> None:
    place = crossing(CURVE["clean"], level)
    assert place == pytest.approx(np.interp(level, CURVE["clean"], range(4)))
    assert value_at(CURVE["step"], place) == pytest.approx(np.interp(place, range(4), CURVE["step"]))


def test_runs_are_compared_at_a_loss_that_all_reach() -> None:
    other = {**CURVE, "train_loss": [4.0, 2.0, 1.5, 1.8]}
    assert common_loss([CURVE, other]) == 1.5


def test_the_training_loss_weighs_clean_and_noisy_problems_by_their_number() -> None:
    own = {"model": "m", "run": "r", "step": 5, "accuracy": 0.5}
    rows = [
        {**own, "set": "clean", "n": 30, "nats_per_answer": 1.0},
        {**own, "set": "noisy", "n": 10, "nats_per_answer": 3.0},
        {**own, "set": "held_out", "n": 99, "nats_per_answer": 9.0},
    ]
    assert curves(rows)["r"]["train_loss"] == [1.5]


def test_a_run_of_several_models_without_noise(tmp_path: Path) -> None:
    models = [model_of_the_world(tmp_path / f"m{seed}", seed) for seed in (1, 0)]
    what = {"memorization": Memorization(noisy=None)}
    world = {"p": 7, "noise_share": 0.0}
    folder = analyze(Options(what, tmp_path / "out", models=models, world=world))
    rows = folder.read_table("memorization")
    assert [(row["set"], row["step"]) for row in rows] == [(s, n) for n in (20, 10) for s in ("clean", "held_out")]
    (last,) = [row for row in rows if row["step"] == 20 and row["set"] == "held_out"]
    numbers = json.loads(folder.record_file.read_text())["numbers"]["all models"]
    assert numbers["memorization/final/held_out"] == last["accuracy"]
    assert "memorization/final/noisy" not in numbers
    assert not any("rote" in path.name for path in folder.figures.iterdir())


def test_a_world_of_another_modulus_is_refused(tmp_path: Path) -> None:
    of = subject_of(model_of_the_world(tmp_path / "model", 0, p=5))
    with pytest.raises(ValueError, match="an answer has 2 tokens in the tokenizer of"):
        Memorization().check(of)
    Memorization(noisy=None, clean="arithmetic/train_clean").check(subject_of(model_of_the_world(tmp_path / "b/m", 0)))
    with pytest.raises(ValueError, match="train_loss = 0: expected nats above 0"):
        Memorization(train_loss=0)
    with pytest.raises(ValueError, match="clean = 'seen/markov': its metrics are nats_per_token; expected exact"):
        Memorization(clean="seen/markov").check(
            replace(of, shared=Shared("cpu", "auto", Reading(world={"n_documents": 2})))
        )
