"""World of biographies."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from lit_consistency.data.worlds import Biographies
from lit_consistency.data.worlds.people import ATTRIBUTES

WORLD = Biographies(n_people=40, n_new=20, n_exposures=6)


def facts_of(world: Biographies, new: bool = False) -> dict[tuple[str, str], str]:
    """(name, attribute) -> value."""
    people = world.new_people if new else world.people
    return {(q.name, a.name): v for q in people for a, v in zip(ATTRIBUTES, q.values, strict=True)}


def read_sentence(sentence: str) -> tuple[str, str, str]:
    """Name, attribute and value of a sentence, found without the generator."""
    words = sentence.rstrip(".").split()
    attribute = next(a.name for a in ATTRIBUTES if words[-1] in a.values)
    start = next(i for i, word in enumerate(words) if word[0].isupper() and word not in ("The", "After", "Life"))
    return " ".join(words[start : start + 3]), attribute, words[-1]


def test_a_biography_tells_each_attribute_of_one_person_once_and_truly() -> None:
    facts = facts_of(WORLD)
    for document in WORLD.documents():
        told = [read_sentence(sentence) for sentence in document.split(". ")]
        assert len({name for name, _, _ in told}) == 1
        assert sorted(attribute for _, attribute, _ in told) == sorted(a.name for a in ATTRIBUTES)
        assert all(facts[name, attribute] == value for name, attribute, value in told)


def test_every_person_is_told_as_often_as_asked() -> None:
    counts = Counter(read_sentence(document.split(". ")[0])[0] for document in WORLD.documents())
    assert set(counts.values()) == {6}
    assert len(counts) == 40


def test_exposures_of_a_person_differ_in_wording_and_order() -> None:
    name = WORLD.people[0].name
    told = [document for document in WORLD.documents() if name in document]
    orders = {tuple(read_sentence(sentence)[1] for sentence in document.split(". ")) for document in told}
    assert len(orders) > 1
    wordings = {document.replace(name, "") for document in told}
    assert len(wordings) == len(told)


def test_held_out_documents_tell_the_same_facts_in_another_way() -> None:
    held_out = list(WORLD.documents("held_out"))
    assert len(held_out) == 40
    assert not set(held_out) & set(WORLD.documents())
    facts = facts_of(WORLD)
    assert all(facts[n, a] == v for d in held_out for n, a, v in map(read_sentence, d.split(". ")))


def test_names_are_unique_and_new_people_are_new_whatever_the_sizes() -> None:
    big = Biographies(n_people=3000, n_new=3000)
    names = {person.name for person in big.people}
    assert len(names) == 3000
    assert not names & {person.name for person in big.new_people}
    # a name drawn twice does not change the person who has it
    assert Biographies(n_people=1500).people == big.people[:1500]


def test_changing_one_size_changes_nothing_else() -> None:
    bigger = Biographies(n_people=80, n_new=20, n_exposures=6)
    assert bigger.people[:40] == WORLD.people
    assert bigger.new_people == WORLD.new_people
    assert bigger.rows("new_people", "test") == WORLD.rows("new_people", "test")
    more_new = Biographies(n_people=40, n_new=90, n_exposures=6)
    assert more_new.new_people[:20] == WORLD.new_people
    assert list(more_new.documents()) == list(WORLD.documents())
    longer = Biographies(n_people=40, n_new=20, n_exposures=9)
    assert set(WORLD.documents()) < set(longer.documents())
    assert list(longer.documents("held_out")) == list(WORLD.documents("held_out"))


def test_values_are_uniform_and_independent() -> None:
    world = Biographies(n_people=20_000, n_exposures=1)
    for i, attribute in enumerate(ATTRIBUTES):
        counts = Counter(person.values[i] for person in world.people)
        expected = 20_000 / len(attribute.values)
        chi2 = sum((counts[value] - expected) ** 2 / expected for value in attribute.values)
        freedom = len(attribute.values) - 1
        assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)
    pairs = Counter((p.values[3], p.values[5]) for p in world.people)
    chi2 = sum((pairs[m, h] - 12.5) ** 2 / 12.5 for m in ATTRIBUTES[3].values for h in ATTRIBUTES[5].values)
    assert abs(chi2 - 39 * 39) < 5 * math.sqrt(2 * 39 * 39)


def test_new_people_are_tested_in_the_wording_they_were_not_told_in() -> None:
    train, test = WORLD.rows("new_people"), WORLD.rows("new_people", "test")
    assert len(train) == 20 * 6 * 3
    assert len(test) == 20 * 6
    assert not {prompt for prompt, _ in train} & {prompt for prompt, _ in test}
    facts = facts_of(WORLD, new=True)
    for split in (train, test):
        told = [read_sentence(prompt + completion) for prompt, completion in split]
        assert all(facts[name, attribute] == value for name, attribute, value in told)
        assert {(name, attribute) for name, attribute, _ in told} == set(facts)
    assert {(q.prompt, q.answer + ".") for q in WORLD.probes("new_cloze")} == set(test)


def test_base_clozes_have_the_form_of_the_text() -> None:
    world = Biographies(n_people=40, n_exposures=60)
    sentences = {sentence.rstrip(".") for document in world.documents() for sentence in document.split(". ")}
    probes = world.probes("base_cloze")
    assert len({(probe.cluster, probe.tags["attribute"]) for probe in probes}) == len(probes) == 40 * 6
    assert {probe.cluster for probe in probes} == {person.name for person in world.people}
    assert all(probe.prompt + probe.answer in sentences for probe in probes)


def test_questions_are_trained_on_one_half_and_tested_on_the_other() -> None:
    train, test = WORLD.rows("qa"), WORLD.rows("qa", "test")
    assert len(train) == len(test) == 20 * 6
    assert not {prompt for prompt, _ in train} & {prompt for prompt, _ in test}
    for split, rows in (("train", train), ("test", test)):
        asked = {(q.prompt, q.answer + "."): q.tags for q in WORLD.probes(f"qa_{split}")}
        assert set(asked) == set(rows)
        assert {int(tags["person"]) % 2 for tags in asked.values()} == {("train", "test").index(split)}
        for (prompt, answer), tags in asked.items():
            person = WORLD.people[int(tags["person"])]
            assert person.name in prompt
            assert answer.strip(" .") in person.values


def test_chance_is_what_guessing_gets() -> None:
    optimum = WORLD.optimum()
    assert optimum["chance/major"] == 1 / 40
    assert optimum["chance/birth_city"] == 1 / 100
    assert optimum["attribute_nats"] == pytest.approx(math.log(80 * 100 * 80 * 40 * 100 * 40))


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_document_nats_is_the_code_length_of_a_reader_who_knows_everybody(skew: float) -> None:
    # the reader predicts the sentences one by one: person at the first, attribute among those left, one wording of four
    world = Biographies(n_people=30, n_exposures=20, skew=skew)
    people = Counter(read_sentence(document.split(". ")[0])[0] for document in world.documents())
    total = sum(people.values())
    nats = []
    for document in world.documents():
        sentences = document.split(". ")
        nats.append(-math.log(people[read_sentence(sentences[0])[0]] / total))
        for i in range(len(sentences)):
            nats[-1] += math.log(len(sentences) - i) + math.log(4)
    assert world.optimum()["document_nats"] == pytest.approx(sum(nats) / total, rel=1e-12)
    assert world.optimum()["ignorant_document_nats"] - sum(nats) / total == pytest.approx(
        world.optimum()["attribute_nats"], rel=1e-12
    )


def test_wordings_and_orders_are_uniform_as_the_optimum_says() -> None:
    sentences = [s for d in Biographies(n_people=50, n_exposures=60).documents() for s in d.split(". ")]
    openings = Counter(s.split()[0] == "The" for s in sentences)
    n, share = len(sentences), 6 / 24  # one wording of four of each attribute opens with "The"
    assert abs(openings[True] - n * share) < 5 * math.sqrt(n * share * (1 - share))


def test_skew_tells_the_head_more_often_and_everybody_at_least_once() -> None:
    world = Biographies(n_people=300, n_exposures=2, skew=1.5)
    assert world.exposures == sorted(world.exposures, reverse=True)
    assert world.exposures[0] / world.exposures[1] == pytest.approx(2**1.5, rel=0.01)
    assert world.exposures[-1] == 1
    assert sum(1 for _ in world.documents()) == sum(world.exposures)
    tags = Counter(probe.tags["frequency"] for probe in world.probes("base_cloze"))
    assert tags == {"head": 600, "middle": 600, "tail": 600}


def test_no_skew_is_the_uniform_world() -> None:
    assert WORLD.exposures == [6] * 40
    assert {probe.tags["frequency"] for probe in WORLD.probes("base_cloze")} == {"uniform"}
    assert "frequency" not in WORLD.probes("new_cloze")[0].tags


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_people": 1}, "n_people = 1: expected 2 <= n_people <= 100000"),
        ({"n_new": 0}, "n_new = 0: expected 1 <= n_new"),
        ({"n_exposures": 0}, "n_exposures = 0: expected 1 <= n_exposures"),
        ({"skew": -0.5}, "skew = -0.5: expected 0 <= skew <= 4"),
        ({"skew": math.nan}, "skew = nan"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Biographies(**fields)
