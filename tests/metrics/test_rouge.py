from __future__ import annotations

import random
import sys

import pytest

from lit_consistency.metrics import rouge_l
from lit_consistency.metrics.rouge import longest_common_subsequence
from tests.reference import answers as slow

WORDS = ["The", "llamas", "eating", "grass,", "salt", "12", "sea-side", "hills", "Äpfel", "it's"]


def texts(n: int) -> list[str]:
    generator = random.Random(0)
    return [" ".join(generator.choices(WORDS, k=generator.randrange(0, 15))) for _ in range(n)]


def test_common_subsequence_equals_the_recursion() -> None:
    for a, b in zip(texts(100), reversed(texts(100)), strict=True):
        words = tuple(a.split()), tuple(b.split())
        assert longest_common_subsequence(*words) == slow.longest_common_subsequence(*words)


@pytest.mark.parametrize("stemmer", [False, True])
def test_it_equals_the_package_rouge_score(stemmer: bool) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=stemmer)
    for a, b in zip(texts(100), reversed(texts(100)), strict=True):
        expected = scorer.score(b, a)["rougeL"].fmeasure
        assert rouge_l(a, [b], stemmer=stemmer) == pytest.approx(expected, abs=1e-12), (a, b)


def test_the_best_reference_counts() -> None:
    assert rouge_l("the llama eats", ["nothing", "a llama eats"]) == pytest.approx(2 / 3)
    assert rouge_l("", ["nothing"]) == 0.0


def test_no_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="references = "):
        rouge_l("text", [])


def test_a_stemmer_without_nltk_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_consistency.metrics import rouge

    rouge._porter.cache_clear()
    monkeypatch.setitem(sys.modules, "nltk.stem.porter", None)
    with pytest.raises(ImportError, match="eval"):
        rouge_l("text", ["text"], stemmer=True)
