"""Minimal pairs of the suite: templates of twenty phenomena of English grammar, own work, CC0; see suite_rows.py."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from random import Random
from typing import Any

Row = dict[str, Any]
PER_PHENOMENON = 20

# -------------------- minimal pairs, the right sentence first

SINGULAR = ["teacher", "doctor", "farmer", "student", "waiter", "singer", "lawyer", "sailor", "painter", "baker"]
VERBS = [("sing", "sings"), ("sleep", "sleeps"), ("smile", "smiles"), ("work", "works"), ("laugh", "laughs")]
NAMES = [("Mary", "her"), ("John", "him"), ("Anna", "her"), ("Peter", "him"), ("Susan", "her"), ("David", "him")]
ADJECTIVES = ["old", "new", "small", "heavy", "cheap"]
THINGS = ["book", "chair", "lamp", "table", "letter", "picture", "coat", "knife", "bottle", "wheel"]
PLURALS = {"knife": "knives"}
PARTICIPLES = [
    ("eaten", "ate", "the bread"),
    ("written", "wrote", "a letter"),
    ("broken", "broke", "the window"),
    ("taken", "took", "the keys"),
    ("seen", "saw", "the river"),
    ("driven", "drove", "the truck"),
    ("stolen", "stole", "the horse"),
    ("drawn", "drew", "a map"),
    ("worn", "wore", "the coat"),
    ("hidden", "hid", "the gold"),
]
HURT = ["hurt", "blamed", "admired", "saw", "described", "praised"]
ATTRACTORS = [
    ("key", "to", "cabinets"),
    ("picture", "of", "gardens"),
    ("door", "of", "rooms"),
    ("price", "of", "tickets"),
]
ATTRACTORS += [("name", "of", "streets")]
STATES = ["missing", "here", "important", "strange"]
INTRANSITIVE = ["arrived", "slept", "sneezed", "vanished", "laughed"]
OBJECTS = ["the house", "a table", "the bread", "two letters"]
PREPOSITIONS = [
    ("The answer depends on the weather.", "The answer depends of the weather."),
    ("She is interested in music.", "She is interested at music."),
    ("He is afraid of dogs.", "He is afraid at dogs."),
    ("They listened to the radio.", "They listened of the radio."),
    ("The book belongs to my brother.", "The book belongs of my brother."),
    ("We are proud of our work.", "We are proud at our work."),
    ("She is good at chess.", "She is good of chess."),
    ("He apologized for the mistake.", "He apologized of the mistake."),
    ("The house consists of four rooms.", "The house consists at four rooms."),
    ("I am waiting for the bus.", "I am waiting of the bus."),
    ("She believes in ghosts.", "She believes at ghosts."),
    ("He insisted on paying.", "He insisted of paying."),
    ("They are responsible for the damage.", "They are responsible of the damage."),
    ("The boy is similar to his father.", "The boy is similar of his father."),
    ("She succeeded in finding a job.", "She succeeded of finding a job."),
    ("He is married to a nurse.", "He is married of a nurse."),
    ("We arrived at the station.", "We arrived of the station."),
    ("The rule applies to everyone.", "The rule applies of everyone."),
    ("She is tired of the noise.", "She is tired at the noise."),
    ("They agreed on a price.", "They agreed of a price."),
]
COMPLEMENTS = [
    ("enjoys", "swimming", "to swim"),
    ("wants", "to leave", "leaving"),
    ("avoids", "driving", "to drive"),
    ("decided", "to stay", "staying"),
    ("finished", "reading", "to read"),
    ("hopes", "to win", "winning"),
    ("keeps", "talking", "to talk"),
    ("refused", "to pay", "paying"),
    ("suggested", "waiting", "to wait"),
    ("promised", "to help", "helping"),
]
COMPARED = ["bigger", "taller", "older", "cheaper", "faster"]
MASS = ["water", "bread", "sand", "money", "furniture", "advice", "music", "snow", "milk", "rice"]
ARTICLES = [("an", "apple"), ("a", "banana"), ("an", "orange"), ("a", "melon"), ("an", "onion"), ("a", "carrot")]
ARTICLES += [("an", "egg"), ("a", "cake"), ("an", "umbrella"), ("a", "lamp")]
PAST = [("go", "went"), ("fall", "fell"), ("run", "ran"), ("swim", "swam"), ("hide", "hid")]
BARE = [("swim", "swims"), ("drive", "drives"), ("cook", "cooks"), ("dance", "dances"), ("wait", "waits")]
PREDICATES = ["red", "wooden", "broken", "round"]


def _plural(noun: str) -> str:
    return PLURALS.get(noun, f"{noun}s")


def _agreement() -> Iterator[tuple[str, str]]:
    for noun, (many, one) in product(SINGULAR, VERBS):
        yield f"The {noun} {one} every day.", f"The {noun} {many} every day."
        yield f"The {noun}s {many} every day.", f"The {noun}s {one} every day."


def _agreement_across_phrase() -> Iterator[tuple[str, str]]:
    for (head, of, many), state in product(ATTRACTORS, STATES):
        one = many[:-1]
        yield f"The {head} {of} the {many} is {state}.", f"The {head} {of} the {many} are {state}."
        yield f"The {head}s {of} the {one} are {state}.", f"The {head}s {of} the {one} is {state}."


def _agreement_across_clause() -> Iterator[tuple[str, str]]:
    for noun, other, (many, one) in product(SINGULAR[:5], SINGULAR[5:], VERBS):
        yield f"The {noun} that the {other}s like {one}.", f"The {noun} that the {other}s like {many}."
        yield f"The {noun}s that the {other} likes {many}.", f"The {noun}s that the {other} likes {one}."


def _determiner() -> Iterator[tuple[str, str]]:
    for thing, subject in product(THINGS, ["She", "He"]):
        many = _plural(thing)
        yield f"{subject} bought those {many} today.", f"{subject} bought those {thing} today."
        yield f"{subject} sold this {thing} today.", f"{subject} sold this {many} today."


def _determiner_with_adjective() -> Iterator[tuple[str, str]]:
    for thing, adjective in product(THINGS, ADJECTIVES):
        many = _plural(thing)
        yield f"We found these {adjective} {many}.", f"We found this {adjective} {many}."
        yield f"We kept that {adjective} {thing}.", f"We kept those {adjective} {thing}."


def _participle() -> Iterator[tuple[str, str]]:
    for (right, wrong, what), noun in product(PARTICIPLES, SINGULAR):
        yield f"The {noun} has {right} {what}.", f"The {noun} has {wrong} {what}."
        yield f"The {noun} {wrong} {what}.", f"The {noun} {right} {what}."


def _reflexive_gender() -> Iterator[tuple[str, str]]:
    for (name, own), verb in product(NAMES, HURT):
        other = {"her": "him", "him": "her"}[own]
        yield f"{name} {verb} {own}self.", f"{name} {verb} {other}self."


def _reflexive_number() -> Iterator[tuple[str, str]]:
    for noun, verb in product(SINGULAR, HURT):
        yield f"The {noun}s {verb} themselves.", f"The {noun}s {verb} himself."


def _reflexive_antecedent() -> Iterator[tuple[str, str]]:
    for noun, verb in product(SINGULAR, HURT):
        yield f"The brother of the {noun}s {verb} himself.", f"The brother of the {noun}s {verb} themselves."
        yield f"The sisters of the {noun} {verb} themselves.", f"The sisters of the {noun} {verb} herself."


def _polarity_ever() -> Iterator[tuple[str, str]]:
    for noun, (right, _, what) in product(SINGULAR, PARTICIPLES):
        yield f"No {noun} has ever {right} {what}.", f"Some {noun} has ever {right} {what}."


def _polarity_any() -> Iterator[tuple[str, str]]:
    for noun, mass in product(SINGULAR, MASS[:4]):
        yield f"The {noun} did not want any {mass}.", f"The {noun} did want any {mass}."


def _filler_gap() -> Iterator[tuple[str, str]]:
    for noun, thing in product(SINGULAR, THINGS):
        yield f"I know that the {noun} bought the {thing}.", f"I know what the {noun} bought the {thing}."


def _intransitive() -> Iterator[tuple[str, str]]:
    for noun, verb, what in product(SINGULAR, INTRANSITIVE, OBJECTS):
        yield f"The {noun} {verb} in the morning.", f"The {noun} {verb} {what} in the morning."


def _existential() -> Iterator[tuple[str, str]]:
    for thing, where in product(THINGS, ["in the garden", "on the floor"]):
        yield f"There is a {thing} {where}.", f"There is every {thing} {where}."
        yield f"There are some {_plural(thing)} {where}.", f"There are all {_plural(thing)} {where}."


def _case() -> Iterator[tuple[str, str]]:
    for (subject, form), noun in product([("she", "her"), ("he", "him"), ("they", "them"), ("we", "us")], SINGULAR):
        yield f"The {noun} called {form} yesterday.", f"The {noun} called {subject} yesterday."
        yield (
            f"{subject.capitalize()} called the {noun} yesterday.",
            f"{form.capitalize()} called the {noun} yesterday.",
        )


def _inversion() -> Iterator[tuple[str, str]]:
    for noun, (bare, past) in product(SINGULAR, PAST):
        yield f"Where did the {noun} {bare}?", f"Where did the {noun} {past}?"


def _modal() -> Iterator[tuple[str, str]]:
    for noun, (bare, third), modal in product(SINGULAR, BARE, ["can", "must"]):
        yield f"The {noun} {modal} {bare} today.", f"The {noun} {modal} {third} today."


def _prepositions() -> Iterator[tuple[str, str]]:
    yield from PREPOSITIONS


def _complement() -> Iterator[tuple[str, str]]:
    for (verb, right, wrong), (name, _) in product(COMPLEMENTS, NAMES):
        yield f"{name} {verb} {right}.", f"{name} {verb} {wrong}."


def _small_words() -> Iterator[tuple[str, str]]:
    for mass in MASS:
        yield f"There is not much {mass} left.", f"There is not many {mass} left."
    for article, food in ARTICLES:
        other = {"a": "an", "an": "a"}[article]
        yield f"She has {article} {food} in her bag.", f"She has {other} {food} in her bag."
    for thing, degree in product(THINGS[:5], COMPARED):
        yield f"This {thing} is {degree} than that one.", f"This {thing} is more {degree} than that one."
    for thing, colour in product(THINGS[:5], PREDICATES):
        yield f"He sold a {colour} {thing}.", f"He sold a {thing} {colour}."


PHENOMENA = (
    _agreement,
    _agreement_across_phrase,
    _agreement_across_clause,
    _determiner,
    _determiner_with_adjective,
    _participle,
    _reflexive_gender,
    _reflexive_number,
    _reflexive_antecedent,
    _polarity_ever,
    _polarity_any,
    _filler_gap,
    _intransitive,
    _existential,
    _case,
    _inversion,
    _modal,
    _prepositions,
    _complement,
    _small_words,
)


def pairs() -> Iterator[Row]:
    """Of every phenomenon as many pairs, drawn from all that its template gives."""
    for phenomenon in PHENOMENA:
        name = phenomenon.__name__.removeprefix("_")
        drawn = Random(f"pairs {name}").sample(sorted(set(phenomenon())), PER_PHENOMENON)
        for good, bad in drawn:
            yield {"phenomenon": name, "good": good, "bad": bad}
