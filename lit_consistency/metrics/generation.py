"""Numbers from generated answers: what the answer is, whether it is right, and what several samples are worth.

Pure functions on strings and counts. An answer that could not be extracted is None and is never right. Two numbers are
compared by value (51 is 51.0), everything else as text. Given up: units, words for numbers, and formulas beyond a
fraction of whole numbers.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from lit_consistency.records.bounded import bounded

NumberRule = Literal["value", "string"]
"""How numbers are compared: by value, or as lm-evaluation-harness does, as strings."""

# The two filters of lm-evaluation-harness for GSM8K, save that a number must hold a digit: its flexible filter takes
# the dots of "7 apples ..." for the answer. For the rule "value" the strict one also reads "#### $18", which has no
# answer there, and both read the minus sign U+2212.
# https://github.com/EleutherAI/lm-evaluation-harness/blob/v0.4.9/lm_eval/tasks/gsm8k/gsm8k.yaml
NUMBER_PATTERNS = {
    ("gsm8k", "string"): re.compile(r"#### (-?[.,]*[0-9][0-9.,]*)"),
    ("gsm8k", "value"): re.compile(r"#### ([-\u2212]?[$]?[-\u2212]?[.,]*[0-9][0-9.,]*)"),
    ("last_number", "string"): re.compile(r"(-?[$.,]*[0-9][$0-9.,]*)"),
    ("last_number", "value"): re.compile(r"([-\u2212]?[$.,]*[0-9][$0-9.,]*)"),
}
ARTICLES = re.compile(r"\b(a|an|the)\b")
# whole numbers with commas between thousands or without; with a decimal part; a power of ten; a fraction
WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
SIZE = rf"(?:{WHOLE}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}})?|{WHOLE}/0*[1-9][0-9]*"
NUMBER = re.compile(rf"[$€£]?(?P<sign>[-+]?)[$€£]?(?P<size>{SIZE})(?: ?\\?%|\$)?\.?")
# longer ones are compared as text: Python refuses to read whole numbers of more than 4,300 digits
LONGEST_NUMBER = 1000


def extract(text: str, extraction: str = "none", numbers: NumberRule = "value") -> str | None:
    """The answer within a generated text.

    Args:
        text: what was generated, or a reference of the same form.
        extraction: ``none`` (the text without surrounding white space), ``first_line`` (the first line that is not
            blank), ``gsm8k`` (the first number after ``####``), ``last_number``, ``json`` (the JSON value with which
            the text begins, its keys sorted), or a regular expression with one group, whose first match counts.
        numbers: ``string`` reads numbers with the patterns of lm-evaluation-harness, see ``NUMBER_PATTERNS``.

    Returns:
        The answer; numbers without ``$``, thousands separators and a full stop at the end (by the rule ``string``
        without any comma, as lm-eval: 3,5 is then 35). None where there is none.

    Raises:
        ValueError: a regular expression that does not compile or has not exactly one group.
    """
    if extraction == "none":
        return text.strip()
    if extraction == "first_line":
        return next((line.strip() for line in text.splitlines() if line.strip()), None)
    if extraction == "json":
        try:
            return json.dumps(json.JSONDecoder().raw_decode(text.lstrip())[0], sort_keys=True, ensure_ascii=False)
        except (ValueError, RecursionError):
            return None
    if (pattern := NUMBER_PATTERNS.get((extraction, numbers))) is not None:
        # the strict filter takes the first match, the flexible one the last
        matches = pattern.findall(text)
        if not matches:
            return None
        number = matches[0 if extraction == "gsm8k" else -1].replace("\u2212", "-").replace("$", "").rstrip(".,")
        return number.replace(",", "") if numbers == "string" or NUMBER.fullmatch(number) else number
    with bounded(f"extraction = {extraction!r}"):
        match = _pattern(extraction).search(text)
    return match.group(1).strip() if match and match.group(1) is not None else None


@lru_cache(maxsize=64)
def _pattern(extraction: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(extraction)
    except re.error as error:
        raise ValueError(f"extraction = {extraction!r}: {error}; expected a regular expression or a name") from error
    if pattern.groups != 1:
        raise ValueError(
            f"extraction = {extraction!r}: {pattern.groups} groups; expected none, first_line, gsm8k, last_number, or "
            "a regular expression with exactly one group"
        )
    return pattern


def number_value(text: str) -> Fraction | None:
    """The exact value of a text that is a number and nothing else; None for any other text.

    Read are a sign (also U+2212), a currency sign before the digits or dollars around them, commas between thousands, a
    decimal part, a power of ten of up to three digits, a fraction of whole numbers, and a full stop at the end:
    ``$1,250.50``, ``.5``, ``-3/4``, ``1e3``. A percent sign is a unit like the currency sign: ``50%`` has the value 50.
    A comma that divides no thousands makes no number, since ``3,5`` is 3.5 in half of the world.
    """
    text = text.strip()
    match = NUMBER.fullmatch(text.replace("\u2212", "-")) if len(text) <= LONGEST_NUMBER else None
    if match is None:
        return None
    size = Fraction(match["size"].replace(",", ""))
    return -size if match["sign"] == "-" else size


def normalize(
    text: str, *, case: bool = True, punctuation: bool = True, articles: bool = True, whitespace: bool = True
) -> str:
    """Text as it is compared: lower case, without punctuation and the articles a, an, the, white space collapsed.

    Each part can be left out. Source: the evaluation script of SQuAD, Rajpurkar et al. 2016, arXiv 1606.05250; unlike
    there, punctuation and articles stay in a text that holds nothing else, or the choice "A" would equal "The".
    """
    if case:
        text = text.lower()
    if punctuation:
        text = _unless_empty(text.translate(str.maketrans("", "", string.punctuation)), text)
    if articles:
        text = _unless_empty(ARTICLES.sub(" ", text), text)
    return " ".join(text.split()) if whitespace else text


def _unless_empty(text: str, before: str) -> str:
    return text if text.strip() else before


@dataclass(frozen=True)
class AnswerRule:
    """When an answer counts as the same as another.

    Args:
        case: upper and lower case are the same.
        punctuation: punctuation does not count. Switch it off for numbers and formulas: -x would equal x.
        articles: the articles a, an, the do not count.
        whitespace: runs of white space are one space.
        numbers: ``value``: two texts that are both numbers are the same where their values are. ``string``: numbers
            are compared like any other text, as lm-evaluation-harness does.
    """

    case: bool = True
    punctuation: bool = True
    articles: bool = True
    whitespace: bool = True
    numbers: NumberRule = "value"

    def key(self, answer: str) -> Hashable:
        """What two answers must have in common to be the same: the value of a number, else the normalized text."""
        value = number_value(answer) if self.numbers == "value" else None
        return self._text(answer) if value is None else value

    def same(self, answer: str, reference: str) -> bool:
        """Whether the two are the same: as numbers where both are, else as texts."""
        if self.numbers == "value":
            values = number_value(answer), number_value(reference)
            if None not in values:
                return values[0] == values[1]
        return self._text(answer) == self._text(reference)

    def _text(self, answer: str) -> str:
        return normalize(
            answer, case=self.case, punctuation=self.punctuation, articles=self.articles, whitespace=self.whitespace
        )


AS_WORDS = AnswerRule()


def exact_match(answer: str | None, references: Sequence[str], rule: AnswerRule = AS_WORDS) -> float:
    """1 where the answer is the same as one of the references, else 0.

    Raises:
        ValueError: no references.
    """
    check_references(references)
    return float(answer is not None and any(rule.same(answer, reference) for reference in references))


def pass_at_k(n_samples: int, n_right: int, k: int) -> float:
    """Probability that at least one of k samples is right, drawn without replacement from n of which c are.

    pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n-c+1}^{n} (1 - k / i)

    Unbiased, as 1 - (1 - c/n)^k is not. Source: Chen et al. 2021, Evaluating Large Language Models Trained on Code,
    arXiv 2107.03374, section 2.1.

    Raises:
        ValueError: k not between 1 and n, or c not between 0 and n.
    """
    _check_k(k, n_samples)
    if not 0 <= n_right <= n_samples:
        raise ValueError(f"n_right = {n_right}: expected 0 to n_samples = {n_samples}")
    if n_samples - n_right < k:
        return 1.0
    missed = 1.0
    for i in range(n_samples - n_right + 1, n_samples + 1):
        missed *= 1.0 - k / i
    return 1.0 - missed


def majority(answers: Sequence[str | None], rule: AnswerRule = AS_WORDS) -> str | None:
    """The most frequent answer, as it was first written; of equally frequent ones the one that came first.

    Answers that are the same by the rule are counted together. None does not vote.

    Source: Wang et al. 2022, Self-Consistency Improves Chain of Thought Reasoning, arXiv 2203.11171.
    """
    votes: dict[Hashable, list[str]] = {}
    for answer in answers:
        if answer is not None:
            votes.setdefault(rule.key(answer), []).append(answer)
    return max(votes.values(), key=len)[0] if votes else None


def maj_at_k(answers: Sequence[str | None], references: Sequence[str], k: int, rule: AnswerRule = AS_WORDS) -> float:
    """1 where the majority of the first k answers is the same as one of the references, else 0.

    Raises:
        ValueError: k not between 1 and the number of answers, or no references.
    """
    _check_k(k, len(answers))
    return exact_match(majority(answers[:k], rule), references, rule)


def mean_over_samples(scores: Sequence[float]) -> float:
    """Expected score of one sample.

    Raises:
        ValueError: no scores.
    """
    if not scores:
        raise ValueError("scores = []: expected the score of at least one sample")
    return sum(scores) / len(scores)


def check_references(references: Sequence[str]) -> None:
    """Refuse to compare with nothing.

    Raises:
        ValueError: no references, or a single string in place of a list of them.
    """
    if isinstance(references, str) or not references:
        raise ValueError(f"references = {references!r}: expected at least one accepted answer, in a list")


def _check_k(k: int, n_samples: int) -> None:
    if not 1 <= k <= n_samples:
        raise ValueError(f"k = {k}: expected 1 to {n_samples}, the number of samples")
