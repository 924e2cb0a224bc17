from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lit_consistency.data import RowFiles, TextFiles, Tokenizer
from lit_consistency.data.tokens.tokenizer import write_tokenizer
from lit_consistency.data.worlds import Biographies, MarkovChains, WorldRows
from lit_consistency.inference.items import text_bytes
from lit_consistency.tasks import ChainSet, RetainData, RowSet, TextSet, WorldProbes
from tests.data.helpers import ListRows, ListSource


@pytest.fixture(scope="module")
def tokenizer_of_people(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token for every word of the biographies, bytes for the rest."""
    folder = tmp_path_factory.mktemp("people")
    write_tokenizer(Biographies(n_people=2).tokenizer(), folder)
    return Tokenizer(folder)


def write(path: Path, text: str) -> TextFiles:
    path.write_text(text, encoding="utf-8")
    return TextFiles(str(path))


def test_windows_score_every_token_but_the_first_once(tmp_path: Path, tokenizer_of_people: Tokenizer) -> None:
    text = "The hobby of somebody is unknown to everybody."
    ids = tokenizer_of_people.encode(text, bos=False).tolist()
    for block_size in (3, 7, 1000):
        items = TextSet(write(tmp_path / "a.txt", text)).items(tokenizer_of_people, block_size)
        scored = [token for item in items for token in item.candidates[0].tokens[item.candidates[0].supervised]]
        assert scored == ids[1:]
        assert max(len(item.candidates[0].tokens) for item in items) <= block_size + 1
        # the first token has no context; its bytes are not scored
        assert sum(item.candidates[0].n_bytes for item in items) == len(text.encode()) - len(b"The")


def test_text_is_cut_at_its_budget_of_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    items = TextSet(write(tmp_path / "a.txt", "ä" * 100), max_bytes=11).items(tokenizer, 50)
    # five letters of two bytes, no half one; a token is a byte here, and the first is not scored
    assert sum(item.candidates[0].supervised.sum() for item in items) == 9
    assert sum(item.candidates[0].n_bytes for item in items) == 9


def test_every_document_leaves_out_the_bytes_of_its_own_first_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    items = TextSet(ListSource(["the day", "xyz", "q"])).items(tokenizer, 2)
    assert tokenizer.decode(tokenizer.encode("the day", bos=False)[:1]) == "the"
    assert sum(item.candidates[0].n_bytes for item in items) == len(" day") + len("yz")


def test_text_without_documents_is_an_error(tmp_path: Path, tokenizer_of_people: Tokenizer) -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        TextSet(write(tmp_path / "a.txt", " ")).items(tokenizer_of_people, 50)


def test_rows_score_the_answer_and_its_end(tmp_path: Path, tokenizer_of_people: Tokenizer) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "The hobby is", "completion": " golf."}) + "\n")
    item = RowSet(RowFiles(str(file))).items(tokenizer_of_people, 50)[0].candidates[0]
    answer = tokenizer_of_people.decode(__import__("torch").tensor(item.tokens[item.supervised][:-1]))
    assert answer.strip() == "golf."
    assert item.tokens[-1] == tokenizer_of_people.eos_id
    assert item.supervised[-1]
    assert item.n_bytes == len(" golf.")


def test_a_row_that_is_cut_counts_only_the_bytes_that_are_left(tokenizer: Tokenizer) -> None:
    rows = RowSet(ListRows([("xy", "XYZÄ")]))
    # a token is a byte here: x y X Y Z and two of Ä, and the end, which has no bytes; block_size + 1 tokens are left
    assert [rows.items(tokenizer, n)[0].candidates[0].n_bytes for n in (2, 4, 5, 6, 7)] == [1, 3, 4, 5, 5]


def test_bytes_of_tokens_are_those_of_their_text_without_its_end(tokenizer: Tokenizer) -> None:
    tokens = np.append(tokenizer.encode("the dayü", bos=False).numpy(), tokenizer.eos_id)
    assert text_bytes(tokenizer, tokens) == len("the dayü".encode())
    assert text_bytes(tokenizer, tokens[:-2]) == len("the dayü".encode()) - 1, "half a letter"
    assert text_bytes(tokenizer, tokens[-1:]) == 0


def test_rows_are_limited(tokenizer_of_people: Tokenizer) -> None:
    rows = WorldRows(Biographies(n_people=2), "new_people")
    assert len(RowSet(rows, max_rows=7).items(tokenizer_of_people, 50)) == 7


def test_a_probe_scores_exactly_one_token(tokenizer_of_people: Tokenizer) -> None:
    world = Biographies(n_people=5)
    for probes in world.probe_names:
        for item in WorldProbes(world, probes, max_items=20).items(tokenizer_of_people, 50):
            assert len(item.candidates) == 1
            assert item.candidates[0].supervised.tolist() == [False] * (len(item.candidates[0].tokens) - 1) + [True]


def test_chains_bring_their_true_distribution(tmp_path: Path) -> None:
    world = MarkovChains(n_documents=3, length=8)
    write_tokenizer(world.tokenizer(), tmp_path)
    tokenizer = Tokenizer(tmp_path)
    for kind in ("old", "new"):
        watched = ChainSet(world, kind, max_documents=4)
        items, truth = watched.items(tokenizer, 8), watched.truth(tokenizer)
        assert truth.shape == (4 * 8, tokenizer.vocab_size)
        assert np.allclose(truth.exp().sum(-1), 1, atol=1e-5)
        told = np.concatenate([item.candidates[0].tokens[1:] for item in items])
        assert np.isfinite(truth.numpy()[np.arange(len(told)), told]).all(), "what is told is possible"
    with pytest.raises(ValueError, match="block_size = 7: expected at least 8"):
        ChainSet(world).items(tokenizer, 7)


@pytest.mark.parametrize("name", ["", "a/b", "a.b", "a b"])
def test_names_that_would_break_the_tags_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="sets: name"):
        RetainData({name: WorldProbes(Biographies(n_people=2), "base_cloze")})


def test_an_unknown_set_of_probes_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"probes = 'none'.*base_cloze"):
        WorldProbes(Biographies(n_people=2), "none")
