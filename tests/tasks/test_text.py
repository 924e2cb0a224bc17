"""Documents: every token once, its bits over its bytes, the truth of a Markov chain."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from lit_consistency.data.tokens.pairs import opening_token
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.data.worlds import MarkovChains
from lit_consistency.inference.load import Loaded
from lit_consistency.tasks.text import even_shares, n_words
from lit_consistency.tasks.yaml_file import task_from_keys
from tests.reference.scores import chain_kl, document
from tests.tasks.measuring import measure, world_model
from tests.tasks.tiny import built, rows_of, task_of

TEXTS = ["Über den Fluß und in  die Wälder\n\nging er, 走って, allein.", "x", "the answer of the day " * 3]
CHAINS: dict[str, Any] = {"class_path": "lit_consistency.data.worlds.MarkovChains"}
CHAINS["init_args"] = {"n_symbols": 5, "n_chains": 2, "length": 8}


def prose(folder: Path, texts: list[str] = TEXTS, **keys: Any) -> Any:
    return task_of(folder, kind="text", data=[{"text": text} for text in texts], **keys)


@pytest.mark.parametrize("fixture", ["loaded", "loaded_bos"])
def test_numbers_are_those_of_a_plain_loop(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The first token stands behind BOS, or behind the end of the last text where there is no BOS."""
    loaded: Loaded = request.getfixturevalue(fixture)
    tokenizer = loaded.tokenizer
    opening = tokenizer.bos_id if fixture == "loaded_bos" else tokenizer.eos_id
    assert opening_token(tokenizer) == opening
    for block in (7, 128):
        measured = measure(loaded, built(prose(tmp_path), tokenizer, block=block))
        ids = [tokenizer.processor.encode(text).ids for text in TEXTS]
        nats = sum(document(loaded.model, opening, tokens, block) for tokens in ids)
        n_bytes, words = sum(len(text.encode()) for text in TEXTS), sum(len(text.split()) for text in TEXTS)
        values = measured.values()
        assert values["nats_per_token"] == pytest.approx(nats / sum(map(len, ids)), rel=1e-6)
        assert values["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-6)
        assert values["word_perplexity"] == pytest.approx(math.exp(min(nats / words, 700)), rel=1e-4)
        weight = sum(record["weight"] for record in measured.records)
        scores = sum(record["score"] * record["weight"] for record in measured.records)
        assert scores / weight == pytest.approx(values["bits_per_byte"]), "the records hold the number"


@pytest.mark.parametrize("block", [4, 7, 1000])
def test_windows_score_every_token_byte_and_word_of_a_document_once(
    block: int, tiny: Tokenizer, tmp_path: Path
) -> None:
    encoded = built(prose(tmp_path, TEXTS[:2]), tiny, block=block)
    items = [question.item for question in encoded.questions if question.item is not None]
    scored = [token for item in items for token in item.candidates[0].tokens[item.candidates[0].supervised]]
    assert tiny.processor.decode(scored) == "".join(TEXTS[:2])
    assert sum(item.candidates[0].n_bytes for item in items) == len("".join(TEXTS[:2]).encode())
    assert sum(map(n_words, encoded.questions)) == len(TEXTS[0].split()) + 1
    assert all(len(item.candidates[0].tokens) <= block + 1 for item in items)
    assert len({question.id for question in encoded.questions}) == len(encoded.questions)
    assert {question.cluster for question in encoded.questions} == {"task_data.jsonl:1", "task_data.jsonl:2"}
    assert len(built(prose(tmp_path), tiny, block=block, limit=1).questions) == 1


def test_windows_are_those_of_lm_eval(tiny: Tokenizer, tmp_path: Path) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    text = "the question and the answer of the day are there for the user " * 3
    tokens = tiny.encode(text, bos=False).tolist()
    theirs = list(utils.get_rolling_token_windows(tokens, tiny.eos_id, max_seq_len=8, context_len=1))
    ours = [question.item for question in built(prose(tmp_path, [text]), tiny, block=8).questions if question.item]
    assert len(ours) == len(theirs)
    for item, (context, predicted) in zip(ours, theirs, strict=True):
        candidate = item.candidates[0]
        assert candidate.tokens[candidate.supervised].tolist() == predicted
        assert candidate.tokens[:-1].tolist() == context


def test_a_budget_of_bytes_takes_the_same_of_every_document(tmp_path: Path) -> None:
    texts = ["ä" * 3000, "kurz", "z" * 9000]
    kept = [row.labels[0] for row in rows_of(prose(tmp_path, texts, max_bytes=8005))]
    # the short one whole; of the others 4,000 bytes each, and no half letter
    assert kept == ["ä" * 2000, "kurz", "z" * 4001]
    assert [row.labels[0] for row in rows_of(prose(tmp_path, texts))] == texts
    with pytest.raises(ValueError, match="every document is empty; task task has nothing to score"):
        rows_of(prose(tmp_path, [""]))


@pytest.mark.parametrize(
    ("lengths", "budget", "least", "shares"),
    [
        ([5, 100, 40], 65, 10, [5, 30, 30]),
        ([20, 20, 20, 20], 40, 20, [20, 0, 20, 0]),
        ([20, 20], 1000, 20, [20, 20]),
        ([50, 50, 50], 10, 20, [10, 0, 0]),
        ([10, 0, 10], 15, 5, [7, 0, 8]),
    ],
)
def test_even_shares_by_hand(lengths: list[int], budget: int, least: int, shares: list[int]) -> None:
    assert even_shares(lengths, budget, least) == shares


def test_even_shares_are_even_and_within_the_budget() -> None:
    lengths = [(37 * i) % 101 + 1 for i in range(60)]
    for budget in (100, 500, 1500, 2000, 10_000):
        shares = even_shares(lengths, budget, least=30)
        assert sum(shares) <= budget
        cut = [share for share, length in zip(shares, lengths, strict=True) if 0 < share < length]
        assert not cut or max(cut) - min(cut) <= 1, "cut documents give the same"
        assert all(share <= length for share, length in zip(shares, lengths, strict=True))
        if any(share == 0 for share in shares):
            assert not cut or min(cut) >= 30 - 1


@pytest.mark.parametrize("data", [{"documents": "held_out"}, {"pairs": "new_chain/test"}], ids=["old", "new"])
def test_the_divergence_from_the_truth_is_that_of_one_symbol_after_the_other(
    data: dict[str, str], tiny: Tokenizer, tmp_path: Path
) -> None:
    world = MarkovChains(**CHAINS["init_args"])
    loaded = world_model(tmp_path, world)
    keys: dict[str, Any] = {"kind": "text", "metrics": ["kl", "nats_per_token"], "data": {"world": CHAINS, **data}}
    task = task_from_keys(keys | ({"text": "{prompt}{completion}"} if "pairs" in data else {}), "chains")
    encoded = built(task, loaded.tokenizer, block=64, limit=4)
    texts = [question.labels[0] for question in encoded.questions]
    assert len(texts) == 4
    measured = measure(loaded, encoded)
    assert measured.values()["kl"] == pytest.approx(chain_kl(loaded.model, world, texts), rel=1e-5)
    assert len(measured.records) == 4
    for tokenizer, block in ((loaded.tokenizer, 5), (tiny, 64)):
        with pytest.raises(ValueError, match=r"MarkovChains/.*:1: 'kl': expected a whole document in the context"):
            built(task, tokenizer, block=block)
