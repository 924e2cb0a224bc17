"""Numbers from generated answers: what the answer is, whether it is right, and what several samples are worth.

Pure functions on strings and counts. An answer that could not be extracted is None and is never right.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import lru_cache

# the two filters of lm-evaluation-harness for GSM8K, save that a number must hold a digit: its flexible filter takes
# the dots of "7 apples ..." for the answer
# https://github.com/EleutherAI/lm-evaluation-harness/blob/v0.4.9/lm_eval/tasks/gsm8k/gsm8k.yaml
STRICT_NUMBER = re.compile(r"#### (-?[.,]*[0-9][0-9.,]*)")
ANY_NUMBER = re.compile(r"(-?[$.,]*[0-9][$0-9.,]*)")
ARTICLES = re.compile(r"\b(a|an|the)\b")


def extract(text: str, extraction: str = "none") -> str | None:
    """The answer within a generated text.

    Args:
        text: what was generated, or a reference of the same form.
        extraction: ``none`` (the text without surrounding white space), ``first_line`` (the first line that is not
            blank), ``gsm8k`` (the first number after ``####``), ``last_number``, or a regular expression with one
            group, whose first match counts.

    Returns:
        The answer; numbers without ``$``, thousands separators and a full stop at the end. None where there is none.

    Raises:
        ValueError: a regular expression that does not compile or has not exactly one group.
    """
    if extraction == "none":
        return text.strip()
    if extraction == "first_line":
        return next((line.strip() for line in text.splitlines() if line.strip()), None)
    if extraction == "gsm8k":
        found = STRICT_NUMBER.search(text)
        return _number(found.group(1)) if found else None
    if extraction == "last_number":
        numbers = ANY_NUMBER.findall(text)
        return _number(numbers[-1]) if numbers else None
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


def _number(text: str) -> str:
    return text.replace(",", "").replace("$", "").rstrip(".")


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


def exact_match(
    answer: str | None,
    references: Sequence[str],
    *,
    case: bool = True,
    punctuation: bool = True,
    articles: bool = True,
    whitespace: bool = True,
) -> float:
    """1 where the answer equals one of the references after ``normalize``, else 0.

    For numbers and formulas switch ``punctuation`` off: it would make 1.5 equal 15, and -5 equal 5.

    Raises:
        ValueError: no references.
    """
    check_references(references)
    if answer is None:
        return 0.0

    def same(text: str) -> str:
        return normalize(text, case=case, punctuation=punctuation, articles=articles, whitespace=whitespace)

    return float(same(answer) in {same(reference) for reference in references})


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


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer; of equally frequent ones the one that came first. None does not vote.

    Source: Wang et al. 2022, Self-Consistency Improves Chain of Thought Reasoning, arXiv 2203.11171.
    """
    votes: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + 1
    return max(votes, key=votes.__getitem__) if votes else None


def maj_at_k(answers: Sequence[str | None], references: Sequence[str], k: int) -> float:
    """1 where the majority of the first k answers is one of the references, else 0.

    Votes and references are compared as they are: normalize them before.

    Raises:
        ValueError: k not between 1 and the number of answers, or no references.
    """
    _check_k(k, len(answers))
    check_references(references)
    return float(majority(answers[:k]) in set(references))


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
