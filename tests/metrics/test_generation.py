from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest

from lit_consistency.metrics import (
    AnswerRule,
    exact_match,
    extract,
    maj_at_k,
    majority,
    mean_over_samples,
    normalize,
    number_value,
    pass_at_k,
)
from tests.reference import answers as slow

EXTRACTED: list[tuple[str, str, str | None]] = [
    ("She has 3 + 4 = 7 apples.\n#### 7", "gsm8k", "7"),
    ("#### 1,234.", "gsm8k", "1234"),
    ("#### -3.5\n#### 9", "gsm8k", "-3.5"),
    ("#### $18", "gsm8k", "18"),
    ("so \u22125, or -$5.00,", "last_number", "-5.00"),
    ("3,5 metres", "last_number", "3,5"),
    ("The answer is 18.", "gsm8k", None),
    ("#### .", "gsm8k", None),
    ("It costs $1,250.50, or $18.", "last_number", "18"),
    ("First 3, then -4", "last_number", "-4"),
    ("7 apples ...", "last_number", "7"),
    ("no number, none.", "last_number", None),
    ("  yes \n", "none", "yes"),
    ("\n  Paris \nLondon", "first_line", "Paris"),
    (" \n", "first_line", None),
    ("Answer: (B) it", r"\(([A-D])\)", "B"),
    ("Answer: B", r"\(([A-D])\)", None),
]


def test_extraction_takes_what_is_meant() -> None:
    for text, extraction, answer in EXTRACTED:
        assert extract(text, extraction) == answer, text


def test_strict_extraction_equals_reading_letter_by_letter() -> None:
    generator = random.Random(0)
    for _ in range(200):
        number = f"{generator.choice([-1, 1]) * generator.randrange(10 ** generator.randrange(1, 9)):,}"
        end = generator.choice(["", ".", " apples", ".50", "\n#### 3", ","])
        text = f"2 + 2 = 4 #{generator.choice(['', 'x'])} #### {number}{end}"
        assert extract(text, "gsm8k") == slow.number_after(text, "#### "), text


def test_numbers_as_strings_are_extracted_as_lm_eval_does() -> None:
    texts = ("#### $18", "3,5 metres", "it is \u22125")
    kinds = ("gsm8k", "last_number", "last_number")
    assert [extract(t, k, "string") for t, k in zip(texts, kinds, strict=True)] == [None, "35", "5"]


@pytest.mark.parametrize("extraction", ["(", "no group", "(two) (groups)"])
def test_a_pattern_without_one_group_is_refused(extraction: str) -> None:
    with pytest.raises(ValueError, match="extraction = "):
        extract("text", extraction)


def test_normalization_has_four_parts_that_can_be_left_out() -> None:
    text = "The  Cat's an Animal."
    assert normalize(text) == "cats animal"
    assert normalize(text, case=False) == "The Cats Animal"
    assert normalize(text, punctuation=False) == "cat's animal."
    assert normalize(text, articles=False) == "the cats an animal"
    assert normalize("a  b", articles=False, whitespace=False) == "a  b"


def test_exact_match_takes_any_reference_and_no_missing_answer() -> None:
    assert exact_match("the Eiffel tower!", ["Louvre", "Eiffel Tower"]) == 1.0
    assert exact_match("Eiffel", ["Eiffel Tower"]) == 0.0
    assert exact_match(None, ["none"]) == 0.0
    assert exact_match("x.y", ["xy"]) == 1.0
    assert exact_match("x.y", ["xy"], AnswerRule(punctuation=False)) == 0.0


# (what the model wrote, what is expected, whether it is right): several of them were judged wrong as strings
NUMBERS = [
    ("51", "51.0", True),
    ("51.0", "51", True),
    (".5", "0.5", True),
    ("0.50", "0.5", True),
    ("The answer is $29.00", "29", True),
    ("#### $18", "18", True),
    ("\u22125", "-5", True),
    ("1,250", "1250", True),
    ("1.250", "1250", False),
    ("77", "7", False),
    ("-5", "5", False),
    ("1.5", "15", False),
    ("3,5", "35", False),
    ("0.1", "0.10000000000000000001", False),
    ("100000000000000000001", "100000000000000000000", False),
    ("50%", "50", True),
    ("50%", "0.5", False),
]


def test_numbers_are_compared_by_value() -> None:
    signs_count = AnswerRule(punctuation=False, articles=False)
    for written, expected, right in NUMBERS:
        assert exact_match(extract(written, "last_number"), [expected], signs_count) == float(right), written
        if number_value(written) is not None:
            assert exact_match(written, [expected]) == float(right), written


def test_numbers_as_strings_are_other_strings() -> None:
    rule = AnswerRule(punctuation=False, articles=False, numbers="string")
    assert [exact_match(a, [r], rule) for a, r, _ in NUMBERS[:4]] == [0.0] * 4
    assert exact_match("51", ["51"], rule) == 1.0


VALUES: list[tuple[str, Fraction | None]] = [
    ("-$1,250.50.", Fraction(-2501, 2)),
    ("$-3", Fraction(-3)),
    ("$18$", Fraction(18)),
    ("3/4", Fraction(3, 4)),
    ("1e3", Fraction(1000)),
    ("+2.", Fraction(2)),
    ("1,25", None),
    ("1,2500", None),
    ("3/0", None),
    ("1.2.3", None),
    ("5 apples", None),
    ("1e9999", None),
    ("9" * 5000, None),
    ("", None),
    ("\u0663", None),
]


def test_the_value_of_a_number_is_exact_and_other_texts_have_none() -> None:
    for text, value in VALUES:
        assert number_value(text) == value, text[:20]


def test_a_number_beside_a_text_is_compared_as_text() -> None:
    assert exact_match("**1.5**", ["1.5"]) == 1.0
    assert exact_match("fifteen", ["15"]) == 0.0


def test_an_answer_of_articles_or_punctuation_alone_is_not_emptied() -> None:
    assert exact_match("A.", ["A"]) == 1.0
    for other in ("The", "an", "", "."):
        assert exact_match(other, ["A"]) == 0.0
    assert (exact_match("+", ["-"]), exact_match("-", ["-"])) == (0.0, 1.0)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_equals_the_share_of_all_choices(n: int) -> None:
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
        assert pass_at_k(n, right, k) == pytest.approx(slow.pass_at_k(n, right, k), abs=1e-12)


def test_pass_at_k_stays_exact_for_many_samples() -> None:
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    assert pass_at_k(10_000, 5_000, 100) == pytest.approx(1.0)


def test_majority_equals_sorting_by_votes_and_place() -> None:
    generator = random.Random(0)
    for _ in range(300):
        answers = generator.choices(["a", "b", "c", None], k=generator.randrange(1, 7))
        assert majority(answers) == slow.majority(answers)


def test_a_tie_goes_to_the_answer_that_came_first() -> None:
    assert majority(["8", "7", "7", "8"]) == "8"
    assert maj_at_k(["8", "7", "7", "8"], ["7"], 4) == 0.0
    assert maj_at_k(["8", "7", "7", "8"], ["7"], 3) == 1.0
    assert maj_at_k([None, None], ["7"], 2) == 0.0


def test_votes_for_one_value_are_counted_together() -> None:
    votes = ["8", "7.0", "$7", "8", "7"]
    assert majority(votes) == "7.0"
    assert maj_at_k(votes, ["7"], 5) == 1.0
    assert maj_at_k(votes, ["7"], 5, AnswerRule(numbers="string", punctuation=False)) == 0.0


def test_bad_input_is_named() -> None:
    for call, message in (
        (lambda: pass_at_k(3, 1, 4), "k = 4: expected 1 to 3"),
        (lambda: pass_at_k(3, 1, 0), "k = 0"),
        (lambda: pass_at_k(3, 4, 1), "n_right = 4"),
        (lambda: maj_at_k(["a"], ["a"], 2), "k = 2: expected 1 to 1"),
        (lambda: maj_at_k(["a"], [], 1), "references = "),
        (lambda: exact_match("a", []), "references = "),
        (lambda: exact_match("a", "a"), "in a list"),
        (lambda: mean_over_samples([]), "scores = "),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert mean_over_samples([1.0, 0.0, 0.5]) == 0.5
