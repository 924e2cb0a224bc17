"""The contract of a world, held by all three."""

from __future__ import annotations

import hashlib
import re

import pytest

from lit_consistency.data.worlds import Biographies, MarkovChains, ModularArithmetic, World
from lit_consistency.data.worlds.base import PARTS, SPLITS, shuffled, stream

WORLDS = [
    Biographies(n_people=12, n_new=5, n_exposures=3, skew=0.5),
    ModularArithmetic(p=11, operation="a2b2", noise_share=0.2),
    MarkovChains(n_symbols=8, n_chains=3, n_new=2, length=10, n_documents=20),
]
# sha256 of everything these worlds say; a change here is a change of the text: raise the world's generation
GOLDEN = {
    "Biographies": "b8ce10cd6a96317c",
    "ModularArithmetic": "231a8f4e5c1bc4c9",
    "MarkovChains": "e8ded1a3781b89ed",
}
each_world = pytest.mark.parametrize("world", WORLDS, ids=lambda w: type(w).__name__)


def world_texts(world: World) -> list[str]:
    """Everything that a world can say, by kind."""
    documents = [text for part in PARTS for text in world.documents(part)]
    rows = [p + c for task in world.tasks for split in SPLITS for p, c in world.rows(task, split)]
    return documents + rows + [q.prompt + q.answer for name in world.probe_names for q in world.probes(name)]


def world_digest(world: World) -> str:
    return hashlib.sha256("\n".join(world_texts(world)).encode()).hexdigest()[:16]


# Python hashes strings differently in every process, so this also says that the text is the same in all of them
@each_world
def test_text_is_the_one_of_the_golden_hash(world: World) -> None:
    assert world_digest(world) == GOLDEN[type(world).__name__]


@each_world
def test_equal_fields_give_equal_text_and_another_seed_another(world: World) -> None:
    fields = {k: v for k, v in world.fingerprint().items() if k not in ("world", "generation")}
    assert world_texts(type(world)(**fields)) == world_texts(world)
    assert list(type(world)(**{**fields, "seed": 1}).documents()) != list(world.documents())


@each_world
def test_asking_twice_gives_the_same(world: World) -> None:
    assert world_texts(world) == world_texts(world)


@each_world
def test_every_text_round_trips_without_the_padding_token(world: World) -> None:
    tokenizer = world.tokenizer()
    for text in world_texts(world):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert 0 not in ids


@each_world
def test_every_word_number_and_mark_is_one_token(world: World) -> None:
    tokenizer = world.tokenizer()
    for text in world_texts(world):
        assert len(tokenizer.encode(text).ids) == len(re.findall(r"\w+|[^\w\s]", text))


@each_world
def test_answers_and_choices_are_one_token_that_separates_from_the_prompt(world: World) -> None:
    tokenizer = world.tokenizer()
    for name in world.probe_names:
        for probe in world.probes(name):
            prompt = tokenizer.encode(probe.prompt).ids
            answer = tokenizer.encode(probe.answer).ids
            assert len(answer) == 1
            assert tokenizer.encode(probe.prompt + probe.answer).ids == prompt + answer
        assert len({tokenizer.encode(choice).ids[0] for choice in probe.choices}) == len(probe.choices)


@each_world
def test_completions_separate_from_their_prompts(world: World) -> None:
    tokenizer = world.tokenizer()
    for task in world.tasks:
        for prompt, completion in world.rows(task):
            apart = tokenizer.encode(prompt).ids + tokenizer.encode(completion).ids
            assert tokenizer.encode(prompt + completion).ids == apart


@each_world
def test_the_answer_is_among_the_choices_and_chance_is_what_the_optimum_says(world: World) -> None:
    optimum = world.optimum()
    for name in world.probe_names:
        for probe in world.probes(name):
            assert list(probe.choices).count(probe.answer) == 1
            attribute = probe.tags.get("attribute")
            assert 1 / len(probe.choices) == optimum[f"chance/{attribute}" if attribute else "chance"]


@each_world
def test_seed_and_size_leave_the_tokenizer_as_it_is(world: World) -> None:
    fields = {k: v for k, v in world.fingerprint().items() if k not in ("world", "generation")}
    assert type(world)(**{**fields, "seed": 5}).tokenizer().to_str() == world.tokenizer().to_str()


@each_world
def test_unknown_names_are_refused_with_what_is_allowed(world: World) -> None:
    with pytest.raises(ValueError, match="part = 'valid': expected one of train, held_out"):
        next(iter(world.documents("valid")))
    with pytest.raises(ValueError, match=f"task = 'poems': expected one of {world.tasks[0]}"):
        world.rows("poems")
    with pytest.raises(ValueError, match="split = 'dev': expected one of train, test"):
        world.rows(world.tasks[0], "dev")
    with pytest.raises(ValueError, match=f"probes = 'all': expected one of {world.probe_names[0]}"):
        world.probes("all")


def test_streams_of_other_names_are_others() -> None:
    draws = [stream("a", 1).random(), stream("a", 2).random(), stream("b", 1).random(), stream("a", 1).random()]
    assert draws[0] == draws[3]
    assert len(set(draws)) == 3


def test_shuffling_keeps_the_items_and_leaves_the_argument_alone() -> None:
    items = list(range(50))
    assert sorted(shuffled(items, "x")) == items == list(range(50))
    assert shuffled(items, "x") != items
