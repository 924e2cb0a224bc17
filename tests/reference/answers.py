"""Answer metrics by enumeration and by the textbook's recursion."""

from functools import cache
from itertools import combinations


def pass_at_k(n_samples, n_right, k):
    """Share of all choices of k samples in which a right one is."""
    right = [i < n_right for i in range(n_samples)]
    chosen = list(combinations(right, k))
    return sum(any(choice) for choice in chosen) / len(chosen)


def majority(answers):
    voted = [answer for answer in answers if answer is not None]
    ranked = sorted(set(voted), key=lambda answer: (-voted.count(answer), voted.index(answer)))
    return ranked[0] if ranked else None


def longest_common_subsequence(a, b):
    @cache
    def length(i, j):
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + length(i + 1, j + 1)
        return max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


def number_after(text, mark):
    """What follows the mark, letter by letter, as long as it may belong to a number."""
    start = text.find(mark)
    if start < 0:
        return None
    found = ""
    for letter in text[start + len(mark) :].strip():
        if letter not in "-0123456789.,":
            break
        found += letter
    found = found.replace(",", "").rstrip(".")
    return found or None
