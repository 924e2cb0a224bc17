"""Rows of the suite (lit_consistency/tasks/suite/data) that are written by templates: own work, CC0.

python -m tests.tasks.suite_rows writes pairs, facts, arithmetic, json and orders; a test holds the files to it. Every
pair of sentences and every fact stands here, or is put together from the words here, by draws of one seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

DATA = Path(__file__).parents[2] / "lit_consistency" / "tasks" / "suite" / "data"
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


# -------------------- facts of public record, four choices each

CAPITALS = """France Paris;Germany Berlin;Italy Rome;Spain Madrid;Portugal Lisbon;Austria Vienna;Greece Athens;
Poland Warsaw;Hungary Budapest;Sweden Stockholm;Norway Oslo;Finland Helsinki;Denmark Copenhagen;Ireland Dublin;
Russia Moscow;Turkey Ankara;Egypt Cairo;Kenya Nairobi;Ethiopia Addis Ababa;Morocco Rabat;Algeria Algiers;
Tunisia Tunis;Ghana Accra;Senegal Dakar;Uganda Kampala;Zambia Lusaka;Japan Tokyo;China Beijing;India New Delhi;
Thailand Bangkok;Vietnam Hanoi;Mongolia Ulaanbaatar;Nepal Kathmandu;Iran Tehran;Iraq Baghdad;Syria Damascus;
Lebanon Beirut;Jordan Amman;Afghanistan Kabul;Pakistan Islamabad;Australia Canberra;Canada Ottawa;Cuba Havana;
Argentina Buenos Aires;Chile Santiago;Peru Lima;Ecuador Quito;Venezuela Caracas;Uruguay Montevideo;Bulgaria Sofia"""
ELEMENTS = """H hydrogen;He helium;C carbon;N nitrogen;O oxygen;Na sodium;Mg magnesium;Al aluminium;Si silicon;
P phosphorus;S sulfur;Cl chlorine;K potassium;Ca calcium;Fe iron;Cu copper;Zn zinc;Ag silver;Sn tin;Au gold;
Hg mercury;Pb lead;U uranium;Ne neon;Ni nickel;W tungsten;I iodine;Ti titanium;Pt platinum;Co cobalt"""
AUTHORS = """Hamlet: William Shakespeare;Pride and Prejudice: Jane Austen;Moby-Dick: Herman Melville;
War and Peace: Leo Tolstoy;Crime and Punishment: Fyodor Dostoevsky;Don Quixote: Miguel de Cervantes;
The Divine Comedy: Dante Alighieri;Faust: Johann Wolfgang von Goethe;Les Miserables: Victor Hugo;
Madame Bovary: Gustave Flaubert;Ulysses: James Joyce;The Metamorphosis: Franz Kafka;Frankenstein: Mary Shelley;
Dracula: Bram Stoker;Jane Eyre: Charlotte Bronte;Great Expectations: Charles Dickens;
The Adventures of Tom Sawyer: Mark Twain;Walden: Henry David Thoreau;The Scarlet Letter: Nathaniel Hawthorne;
Paradise Lost: John Milton;The Canterbury Tales: Geoffrey Chaucer;Robinson Crusoe: Daniel Defoe;
Gulliver's Travels: Jonathan Swift;Treasure Island: Robert Louis Stevenson;The Time Machine: H. G. Wells;
The Jungle Book: Rudyard Kipling;Alice's Adventures in Wonderland: Lewis Carroll;A Doll's House: Henrik Ibsen;
The Republic: Plato;The Prince: Niccolo Machiavelli;On the Origin of Species: Charles Darwin;
The Wealth of Nations: Adam Smith;The Three Musketeers: Alexandre Dumas"""
UNITS = """force newton;energy joule;power watt;pressure pascal;electric charge coulomb;electric potential volt;
electric resistance ohm;frequency hertz;temperature kelvin;mass kilogram;length metre;time second;
amount of substance mole;luminous intensity candela;electric current ampere;capacitance farad;inductance henry;
magnetic flux weber;magnetic flux density tesla;radioactivity becquerel"""
CURRENCIES = """Japan yen;India rupee;China yuan;the United Kingdom pound;Mexico peso;Russia ruble;
Switzerland franc;Brazil real;South Africa rand;Sweden krona;Poland zloty;Turkey lira;Thailand baht;Israel shekel;
Hungary forint;South Korea won;Vietnam dong;Iran rial;Ghana cedi;Kenya shilling"""
YEARS = """The French Revolution began in the year 1789;Columbus first reached the Americas in the year 1492;
The First World War began in the year 1914;The Second World War ended in the year 1945;
The Berlin Wall fell in the year 1989;The first human walked on the Moon in the year 1969;
The Magna Carta was sealed in the year 1215;The Battle of Hastings was fought in the year 1066;
The United States declared independence in the year 1776;The Battle of Waterloo was fought in the year 1815;
The October Revolution in Russia took place in the year 1917;The Titanic sank in the year 1912;
Constantinople fell to the Ottomans in the year 1453;The American Civil War ended in the year 1865;
The Great Fire of London broke out in the year 1666;Martin Luther published his theses in the year 1517;
The Soviet Union was dissolved in the year 1991;The Suez Canal was opened in the year 1869;
The Wright brothers first flew in the year 1903;The Spanish Armada was defeated in the year 1588"""
RIVERS = """Cairo Nile;Paris Seine;London Thames;Vienna Danube;Rome Tiber;Cologne Rhine;Baghdad Tigris;Hamburg Elbe;
Prague Vltava;Warsaw Vistula;New Orleans Mississippi;Montreal Saint Lawrence;Lisbon Tagus;Delhi Yamuna"""
TWO_WORDS = ("Addis Ababa", "New Delhi", "Buenos Aires", "Saint Lawrence")


def _table(text: str, by: str = " ") -> list[tuple[str, str]]:
    """Entries of a table; the answer is the last word, or all behind the mark."""
    rows = []
    for entry in (entry.strip() for entry in text.replace("\n", "").split(";")):
        answer = next((words for words in TWO_WORDS if entry.endswith(words)), entry.rsplit(by, 1)[-1]).strip()
        rows.append((entry.removesuffix(answer).rstrip(": "), answer))
    return rows


FACTS = {
    "capital": ("The capital of {} is", _table(CAPITALS)),
    "element": ("The chemical symbol {} stands for", _table(ELEMENTS)),
    "author": ("The author of {} is", _table(AUTHORS, ": ")),
    "unit": ("The SI unit of {} is the", _table(UNITS)),
    "currency": ("The currency of {} is the", _table(CURRENCIES)),
    "year": ("{}", _table(YEARS)),
    "river": ("{} lies on a river called the", _table(RIVERS)),
}


def facts() -> Iterator[Row]:
    """Every fact with three wrong answers of its kind."""
    for kind, (template, table) in FACTS.items():
        for key, answer in table:
            rng = Random(f"facts {kind} {key}")
            choices = [answer, *rng.sample(sorted({other for _, other in table} - {answer}), 3)]
            rng.shuffle(choices)
            yield {"kind": kind, "question": template.format(key), "choices": choices, "answer": answer}


# -------------------- what a program checks


def arithmetic() -> Iterator[Row]:
    """Sums, differences and products of small numbers."""
    rng = Random("arithmetic")
    problems = [(a, b) for a in range(2, 60) for b in range(2, 40)]
    for a, b in rng.sample(problems, 40):
        yield {"kind": "sum", "problem": f"{a} + {b}", "result": str(a + b)}
    for a, b in rng.sample([(a, b) for a, b in problems if a > b], 40):
        yield {"kind": "difference", "problem": f"{a} - {b}", "result": str(a - b)}
    for a, b in rng.sample([(a, b) for a in range(2, 10) for b in range(2, 10)], 20):
        yield {"kind": "product", "problem": f"{a} * {b}", "result": str(a * b)}


PEOPLE = ["Ada", "Boris", "Clara", "Dora", "Emil", "Frida", "Gustav", "Hanna", "Ivan", "Jonas", "Karla", "Leo"]
TOWNS = ["Rome", "Oslo", "Cairo", "Lima", "Paris", "Tokyo", "Berlin", "Madrid"]
FRUIT = ["apple", "banana", "cherry", "grape", "lemon", "melon", "orange", "peach", "pear", "plum"]


def objects() -> Iterator[Row]:
    """Things to be written as JSON."""
    rng = Random("json")
    rows: dict[str, Row] = {}
    while len(rows) < 30:
        name, town, age = rng.choice(PEOPLE), rng.choice(TOWNS), rng.randint(20, 79)
        fruit = rng.sample(FRUIT, 2)
        text, content = [
            (f"name {name}, age {age}", {"name": name, "age": age}),
            (f"name {name}, town {town}", {"name": name, "town": town}),
            (f"name {name}, fruit {fruit[0]} and {fruit[1]}", {"name": name, "fruit": fruit}),
        ][len(rows) % 3]
        rows[text] = {"kind": ", ".join(content), "text": text, "json": json.dumps(content)}
    yield from rows.values()


ORDERS: dict[str, Callable[[list[str]], str]] = {
    "Put every word in brackets.": lambda words: " ".join(f"[{word}]" for word in words),
    "Sort the words by the alphabet.": lambda words: " ".join(sorted(words)),
    "Write the words in reverse order.": lambda words: " ".join(reversed(words)),
    "Separate the words by commas.": ", ".join,
    "Repeat only the last word.": lambda words: words[-1],
    "Count, with commas between the numbers.": lambda ends: ", ".join(map(str, range(int(ends[0]), int(ends[2]) + 1))),
}


def orders() -> Iterator[Row]:
    """An order, some words, and the one way to obey it; each with an example of the same order."""
    rng = Random("orders")
    rows: dict[tuple[str, str], Row] = {}
    while len(rows) < 60:
        order, obeyed = list(ORDERS.items())[len(rows) % len(ORDERS)]
        example, words = rng.sample(FRUIT, 3), rng.sample(FRUIT, 3)
        if order.startswith("Count"):
            low, high = rng.sample(range(2, 40), 2)
            example, words = [str(low), "to", str(low + 3)], [str(high), "to", str(high + 4)]
        answer, text = obeyed(words), " ".join(words)
        if answer not in (text, obeyed(example)):  # nothing to do, or nothing but to copy
            shown = {"example": " ".join(example), "example_answer": obeyed(example)}
            rows[order, text] = {
                "kind": order.split()[0].strip(","),
                "order": order,
                **shown,
                "text": text,
                "answer": answer,
            }
    yield from rows.values()


FILES = {"pairs": pairs, "facts": facts, "arithmetic": arithmetic, "json": objects, "orders": orders}


def written(name: str) -> str:
    """Contents of a file."""
    return "".join(json.dumps(row) + "\n" for row in FILES[name]())


if __name__ == "__main__":
    for name in FILES:
        (DATA / f"{name}.jsonl").write_text(written(name), encoding="utf-8")
