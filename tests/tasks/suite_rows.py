"""Rows of the suite (lit_consistency/tasks/suite/data) that are written by templates: own work, CC0.

python -m tests.tasks.suite_rows writes pairs, facts, arithmetic, json and orders; a test holds the files to it. Every
pair of sentences and every fact stands here, or is put together from the words here, by draws of one seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.tasks.suite_pairs import pairs

DATA = Path(__file__).parents[2] / "lit_consistency" / "tasks" / "suite" / "data"
Row = dict[str, Any]

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
