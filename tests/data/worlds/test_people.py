"""Words and sentences of the biographies."""

from __future__ import annotations

from collections import Counter

from lit_consistency.data.worlds.people import (
    ATTRIBUTES,
    FIRST_NAMES,
    LAST_NAMES,
    MIDDLE_NAMES,
    N_TEMPLATES,
    ask,
    every_word,
)
from lit_consistency.data.worlds.vocabulary import word_tokenizer

TEMPLATES = [(a.name, template) for a in ATTRIBUTES for template in a.templates]


def test_no_word_is_in_two_lists_or_in_a_sentence() -> None:
    lists = [FIRST_NAMES, MIDDLE_NAMES, LAST_NAMES, *(a.values for a in ATTRIBUTES)]
    sentences = " ".join(template.format(name="", value="") for _, template in TEMPLATES)
    questions = " ".join(ask(a.question.format(name="")) for a in ATTRIBUTES)
    words = set((sentences + " " + questions).replace(".", " ").replace("?", " ").replace(":", " ").split())
    counts = Counter(word for each in [*lists, words] for word in each)
    assert counts.most_common(1)[0][1] == 1


def test_every_attribute_has_its_wordings_with_the_name_before_the_value() -> None:
    for attribute in ATTRIBUTES:
        assert len(set(attribute.templates)) == N_TEMPLATES
        for template in attribute.templates:
            before, after = template.split(" {value}")
            assert "{name}" in before
            assert after == "."


def test_what_stands_before_a_value_decides_the_attribute() -> None:
    # the words of one template up to its value may not open another one that goes on with a word
    openings = [(name, template.split(" {value}")[0].split()) for name, template in TEMPLATES]
    for i, (_, opening) in enumerate(openings):
        for j, (_, other) in enumerate(openings):
            assert i == j or other[: len(opening)] != opening


def test_vocabulary_fits_a_base_of_one_million_parameters() -> None:
    assert word_tokenizer(every_word()).get_vocab_size() <= 1024
