"""The words of the biographies: names, attributes with their values, and the sentences that tell and ask them.

Names, cities, universities and employers are put together from syllables, pronounceable and meaning nobody; majors and
hobbies are plain English. No word stands in two lists, so a value says which attribute it belongs to. In every sentence
the name comes before the value, and what stands before the value decides the attribute: no sentence begins like another
one up to its value, so a cloze has exactly one right answer.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple


class Attribute(NamedTuple):
    """One thing that is known of a person.

    Attributes:
        name: As it appears in tags and in the optimum.
        values: What it can be; drawn uniformly.
        templates: Sentences with ``{name}`` and then ``{value}``, which is followed by the full stop.
        question: A question with ``{name}``.
    """

    name: str
    values: tuple[str, ...]
    templates: tuple[str, ...]
    question: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _compounds(stems: str, endings: str) -> tuple[str, ...]:
    return tuple(stem + ending for stem, ending in product(_words(stems), _words(endings)))


FIRST_NAMES = _compounds("Al Be Ca Da El Fa Ga Ha Jo Ka La Ma Na Or Pa Ri", "bran dora lin nis vek")
MIDDLE_NAMES = _compounds("An Bo Cy De Em Fi Go Hu Il Ju Ky Lo Mi Ne Os Pe", "dric mar shan tor wyn")
LAST_NAMES = _compounds(
    "Ash Brin Cald Dun Elk Farn Glen Holt Ing Kers Lang Mor North Oak Penn Quill", "beck croft field stead worth"
)
CITIES = _compounds(
    "Abra Bela Cora Dela Esta Fara Gala Hela Isa Jora Kela Lora Mira Nora Ova Pala Rena Sola Tara Vela",
    "burg grad polis port ville",
)
UNIVERSITIES = _compounds(
    "Ard Blen Cran Dray Eck Fen Graf Hart Ives Kirk Lyn Marl Nels Ott Prest Rand", "bridge ford gate hurst minster"
)
EMPLOYERS = _compounds(
    "Acu Bio Cyra Dyna Euro Flexi Giga Hydro Inno Kine Lumi Medi Neo Opti Poly Quanta Robo Stella Terra Ultra",
    "dyne forge nautics tronix works",
)
MAJORS = _words("""
    accounting algebra anatomy archaeology architecture astronomy biology botany chemistry cinema dance dentistry
    design drama ecology economics engineering ethics finance forestry genetics geography geology geometry history
    journalism law linguistics logic management marketing mathematics medicine music nursing philosophy physics
    poetry sociology statistics
""")
HOBBIES = _words("""
    archery badminton baking baseball birdwatching boxing calligraphy camping carpentry chess climbing cooking
    crochet cycling diving embroidery fencing fishing gardening golf hiking hockey juggling karate kayaking knitting
    origami painting photography pottery quilting rowing running sailing skating skiing snorkeling surfing tennis
    yoga
""")

ATTRIBUTES = (
    Attribute(
        "birth_year",
        tuple(str(year) for year in range(1920, 2000)),
        (
            "{name} was born during the year {value}.",
            "The birth year of {name} is {value}.",
            "{name} came into the world in {value}.",
            "Life began for {name} in {value}.",
        ),
        "In which year was {name} born?",
    ),
    Attribute(
        "birth_city",
        CITIES,
        (
            "{name} was born in {value}.",
            "The birthplace of {name} is {value}.",
            "{name} is a native of {value}.",
            "{name} grew up in {value}.",
        ),
        "In which city was {name} born?",
    ),
    Attribute(
        "university",
        UNIVERSITIES,
        (
            "{name} studied at {value}.",
            "The university of {name} is {value}.",
            "{name} is a graduate of {value}.",
            "{name} earned a degree at {value}.",
        ),
        "Which university did {name} attend?",
    ),
    Attribute(
        "major",
        MAJORS,
        (
            "{name} majored in {value}.",
            "The subject of {name} is {value}.",
            "{name} has a degree in {value}.",
            "{name} is trained in {value}.",
        ),
        "Which subject did {name} study?",
    ),
    Attribute(
        "employer",
        EMPLOYERS,
        (
            "{name} works for {value}.",
            "The employer of {name} is {value}.",
            "{name} has a job at {value}.",
            "{name} is employed by {value}.",
        ),
        "Which company pays {name}?",
    ),
    Attribute(
        "hobby",
        HOBBIES,
        (
            "{name} enjoys {value}.",
            "The hobby of {name} is {value}.",
            "{name} spends weekends on {value}.",
            "After work {name} likes {value}.",
        ),
        "Which hobby does {name} have?",
    ),
)
N_TEMPLATES = 4


def ask(question: str) -> str:
    """The prompt of a question; the answer follows with its space."""
    return f"Question: {question} Answer:"


def every_word() -> list[str]:
    """Texts that hold every word the biographies use, in a fixed order."""
    names = [" ".join(FIRST_NAMES), " ".join(MIDDLE_NAMES), " ".join(LAST_NAMES)]
    sentences = [template.format(name="", value="") for a in ATTRIBUTES for template in a.templates]
    questions = [ask(attribute.question.format(name="")) for attribute in ATTRIBUTES]
    return [*sentences, *questions, *names, *(" ".join(attribute.values) for attribute in ATTRIBUTES)]
