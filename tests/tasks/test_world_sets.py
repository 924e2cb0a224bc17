"""Worlds as watched sets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from litgpt.tokenizer import Tokenizer

from lit_consistency.data.tokens.tokenizer import write_tokenizer
from lit_consistency.data.worlds import Biographies, MarkovChains, ModularArithmetic, World
from lit_consistency.tasks import ChainSet, WorldProbes

CHAINS = MarkovChains(n_symbols=5, n_chains=2, length=8, n_documents=4)
WORLDS = [Biographies(n_people=4), ModularArithmetic(p=5), CHAINS]


def tokenizer_in(folder: Path, world: World) -> Tokenizer:
    write_tokenizer(world.tokenizer(), folder)
    return Tokenizer(folder)


@pytest.mark.parametrize(
    "world", [Biographies(n_people=4), ModularArithmetic(p=5), CHAINS], ids=lambda w: type(w).__name__
)
def test_each_question_supervises_the_one_token_of_its_answer(world: World, tmp_path: Path) -> None:
    tokenizer = tokenizer_in(tmp_path, world)
    for name in world.probe_names:
        items = WorldProbes(world, name, max_items=7).items(tokenizer, block_size=64)
        questions = world.probes(name)[:7]
        assert len(items) == len(questions)
        for item, question in zip(items, questions, strict=True):
            (candidate,) = item.candidates
            assert item.gold == 0
            assert candidate.supervised.nonzero()[0].tolist() == [len(candidate.tokens) - 1]
            text = tokenizer.decode(torch.from_numpy(candidate.tokens))
            assert text == question.prompt + question.answer


def test_wrong_names_of_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="probes = 'old': expected one of base_cloze"):
        WorldProbes(Biographies(), "old")
    with pytest.raises(ValueError, match="metric = 'f1': expected one of exact, loss"):
        WorldProbes(Biographies(), "base_cloze", metric="f1")
    with pytest.raises(ValueError, match="max_items = 0: expected at least 1"):
        WorldProbes(Biographies(), "base_cloze", max_items=0)
    with pytest.raises(ValueError, match="kind = 'all': expected one of old, new"):
        ChainSet(CHAINS, "all")


@pytest.mark.parametrize("kind", ["old", "new"])
def test_the_truth_has_a_row_for_every_supervised_token(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_in(tmp_path, CHAINS)
    watched = ChainSet(CHAINS, kind, max_documents=3)
    items = watched.items(tokenizer, block_size=8)
    truth = watched.truth(tokenizer)
    assert truth.shape == (3 * 8, tokenizer.vocab_size)
    targets = torch.cat([torch.from_numpy(i.candidates[0].tokens[i.candidates[0].supervised]) for i in items])
    assert torch.isfinite(truth.gather(1, targets[:, None])).all()


def test_a_context_shorter_than_a_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="block_size = 7: expected at least 8"):
        ChainSet(CHAINS).items(tokenizer_in(tmp_path, CHAINS), block_size=7)
