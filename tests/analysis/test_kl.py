from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_consistency.analysis.core.divergence import Divergences, divergences, share_of_largest
from lit_consistency.analysis.core.run import Options, analyze
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.kl import KL
from lit_consistency.data.tokens.tokenizer import write_tokenizer
from lit_consistency.inference.kl import KLToBase
from lit_consistency.model import IGNORE
from lit_consistency.records.tables import Row
from lit_consistency.stats.intervals import estimate, ratio
from tests.analysis.models import TEXTS, WORLD, nothing, subject, write_model
from tests.data.conftest import byte_level_tokenizer

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"n_layer": 1, "padded_vocab_size": 384, "vocab_size": 378}


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A base and a model near it, on the two texts."""
    folder = tmp_path_factory.mktemp("models")
    base = write_model(folder / "base", **SHAPE)
    return subject(write_model(folder / "model", 1, base=base, scale=0.1, **SHAPE), base, TEXTS, limit=8)


@pytest.fixture(scope="module")
def rows(of: Subject) -> list[Row]:
    return [{"model": "model", **row} for part in KL().parts(of) for row in KL().measure(of, part, nothing)]


def only(rows: list[Row], of: str, text: str = TEXTS[0]) -> list[Row]:
    return [row for row in rows if row["of"] == of and row["text"] == text]


def compare(of: Subject, batch_tokens: int = 512) -> Divergences:
    return divergences(
        of.load(of.origin).model, of.load().model, of.text().rows, n_vocab=384, batch_tokens=batch_tokens, device=CPU,
        advance=nothing,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(of: Subject) -> list[dict[str, Any]]:
    """One row after the other, one position after the other, over the vocabulary in numpy."""
    found = []
    for number, (tokens, targets) in enumerate(of.text().rows):
        both = [of.load(files).model(tokens[None])[0].double() for files in (of.origin, of.model)]
        for column in range(len(tokens)):
            if targets[column] == IGNORE:
                continue
            p, q = (np.exp(z[column].numpy()) / np.exp(z[column].numpy()).sum() for z in both)
            found.append({
                "rows": number, "columns": column, "targets": int(targets[column]),
                "forward": (p * np.log(p / q)).sum(), "reverse": (q * np.log(q / p)).sum(),
                "base_top": p.argmax(), "model_top": q.argmax(),
                "base_top_log_prob": math.log(p.max()), "model_top_log_prob": math.log(q.max()),
                "base_log_prob": math.log(p[targets[column]]), "model_log_prob": math.log(q[targets[column]]),
            })  # fmt: skip
    return found


@pytest.mark.parametrize("batch_tokens", [1, 70, 512])
def test_every_position_is_compared(of: Subject, expected: list[dict[str, Any]], batch_tokens: int) -> None:
    """However the rows are batched, they stand in the order of the text."""
    found = compare(of, batch_tokens)
    for name in Divergences._fields:
        values = torch.tensor([row[name] for row in expected])
        torch.testing.assert_close(getattr(found, name), values.to(getattr(found, name)), rtol=1e-4, atol=1e-5)


def test_large_vocabularies_come_in_pieces(of: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(of)
    for name in ("lit_consistency.inference.head", "lit_consistency.analysis.core.divergence"):
        monkeypatch.setattr(f"{name}.ELEMENTS", 5 * 384)
    for one, other in zip(compare(of), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_it_is_what_runs_and_evaluations_report(of: Subject, rows: list[Row]) -> None:
    numbers = KL().summary(rows)
    for text in TEXTS:
        known = KLToBase(of.text(text).items, n_vocab=384, batch_tokens=512, device=CPU)
        known.read_base(of.load(of.origin).model)
        terms = known.terms(of.load().model)
        assert numbers[f"forward/{text}"] == pytest.approx(float(terms.forward.mean()), rel=1e-5)
        assert numbers[f"reverse/{text}"] == pytest.approx(float(terms.reverse.mean()), rel=1e-5)
        forward, _, counts = terms.by_item()
        interval = estimate(ratio(forward.numpy(), counts.numpy()), of.text(text).clusters)
        (whole,) = only(rows, "text", text)
        assert (whole["forward_low"], whole["forward_high"]) == pytest.approx((interval.low, interval.high), rel=1e-4)


class Fixed(nn.Module):
    """Logits that depend on the token alone."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]


def test_two_coins() -> None:
    """Bernoulli(1/2) against Bernoulli(1/4): ln 2 - ln 3 / 2 forward, 3 ln 3 / 4 - ln 2 in reverse."""
    base, model = Fixed(torch.zeros(2, 2)), Fixed(torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]])))
    rows = [(torch.tensor([0, 1, 0]), torch.tensor([1, IGNORE, 0])), (torch.tensor([1]), torch.tensor([1]))]
    found = divergences(base, model, rows, n_vocab=2, batch_tokens=8, device=CPU, advance=nothing)
    coin = math.log(2) - math.log(3) / 2
    assert found.forward.tolist() == pytest.approx([coin, coin, 0], abs=1e-6)
    assert found.reverse[:2].tolist() == pytest.approx([0.75 * math.log(3) - math.log(2)] * 2, rel=1e-5)
    assert found.model_log_prob.exp().tolist() == pytest.approx([0.75, 0.25, 0.5])
    assert (found.rows.tolist(), found.columns.tolist()) == ([0, 0, 1], [0, 2, 0])


def test_a_model_that_did_not_move(of: Subject) -> None:
    base = of.of(of.origin)
    (whole,) = only(KL().measure(base, TEXTS[0], nothing), "text")
    assert (whole["forward"], whole["reverse"], whole["agreement"]) == (0, 0, 1)
    assert math.isnan(float(whole["concentration"]))
    assert whole["base_nats_per_token"] == whole["model_nats_per_token"]


def test_where_it_sits(expected: list[dict[str, Any]], rows: list[Row]) -> None:
    """Sums over stretches, documents and tokens are the whole; one counted by hand."""
    total = sum(row["forward"] for row in expected)
    for kind in ("position", "document", "token"):
        own = only(rows, kind)
        assert sum(int(row["positions"]) for row in own) == len(expected)
        assert sum(float(row["forward"]) * int(row["positions"]) for row in own) == pytest.approx(total, rel=1e-5)
    top = only(rows, "token")[0]
    of_token = [row["forward"] for row in expected if row["targets"] == top["token_id"]]
    assert top["positions"] == len(of_token)
    assert top["share"] == pytest.approx(sum(of_token) / total, rel=1e-5)
    # every document of this world is one row, and its positions are those of the row
    starts = only(rows, "position")
    third = [row["forward"] for row in expected if starts[2]["start"] <= row["columns"] < starts[2]["stop"]]
    assert starts[2]["forward"] == pytest.approx(sum(third) / len(third), rel=1e-4)


def test_a_later_window_goes_on_counting(tmp_path: Path) -> None:
    """A document of 40 tokens is read in windows of 32 (block_size); the last one begins with seen tokens."""
    text = tmp_path / "long.txt"
    text.write_text(" ".join(["ba be bi bo"] * 10), encoding="utf-8")
    base = write_model(tmp_path / "base", **SHAPE)
    of = subject(write_model(tmp_path / "model", 1, base=base, scale=0.1, **SHAPE), base, (str(text),))
    assert len(of.text().rows) > 1
    rows = KL(changed=1000).measure(of, str(text), nothing)
    places = [int(row["position"]) for row in rows if row["of"] == "changed"]
    assert sorted(places) == list(range(of.text().n_scored))


def test_concentration() -> None:
    values = torch.tensor([1.0, 7.0, 1.0, 1.0], dtype=torch.float64)
    assert [share_of_largest(values, share) for share in (0.01, 0.25, 0.5, 1.0)] == [0.7, 0.7, 0.8, 1.0]
    assert share_of_largest(torch.ones(200), 0.01) == pytest.approx(0.01)


def test_the_most_changed_are_shown_with_their_text(
    of: Subject, expected: list[dict[str, Any]], rows: list[Row]
) -> None:
    ranked = sorted(expected, key=lambda row: -row["forward"])
    shown = only(rows, "changed")
    assert len(shown) == 100 < len(expected)
    decode = of.load().tokenizer.decode
    said = [(*(json.loads(str(row[key])) for key in ("context", "true", "base_top")), row) for row in shown]
    for known, at_this_place in zip(ranked[:20], shown, strict=False):
        assert at_this_place["forward"] == pytest.approx(known["forward"], rel=1e-4)
        tokens = of.text().rows[known["rows"]][0]
        context = tokens[max(known["columns"] - 23, 0) : known["columns"] + 1]
        texts = decode(context), decode(torch.tensor([known["targets"]])), decode(torch.tensor([known["base_top"]]))
        # of two that are alike to rounding either comes first
        row = next(row for *words, row in said if tuple(words) == texts)
        assert row["forward"] == pytest.approx(known["forward"], rel=1e-4)
        assert row["true_model"] == pytest.approx(math.exp(known["model_log_prob"]), rel=1e-3)
    by_reverse = only(KL(by="reverse", changed=3).measure(of, TEXTS[0], nothing), "changed")
    assert [row["reverse"] for row in by_reverse] == pytest.approx(
        sorted((row["reverse"] for row in expected), reverse=True)[:3], rel=1e-4
    )


def test_of_questions_the_answers_are_compared(tmp_path: Path) -> None:
    """By hand the candidate of the least summed nll, of both models."""
    ends = [a + b for a, b in product("bdfghjk", "aeiou")]
    questions = [{"q": f"ba {a}", "a": ends[i : i + 3], "gold": i % 3} for i, a in enumerate(ends[:30])]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, questions)), encoding="utf-8")
    task = tmp_path / "choice.yaml"
    keys = {"kind": "choice", "fields": {"Q": "{q}"}, "choices": "{a}", "gold": "{gold}"}
    task.write_text(json.dumps({**keys, "data": {"path": str(tmp_path / "rows.jsonl")}}), encoding="utf-8")
    base = write_model(tmp_path / "base", block_size=128, **SHAPE)
    model = write_model(tmp_path / "model", 1, base=base, scale=0.3, block_size=128, **SHAPE)
    of = subject(model, base, (str(task),))
    chosen: list[list[int]] = [[], []]
    for answers, files in zip(chosen, (of.origin, of.model), strict=True):
        for item in of.text().items:
            nll = []
            for tokens, supervised, _ in item.candidates:
                ids = torch.as_tensor(tokens, dtype=torch.int64)
                log_probs = of.load(files).model(ids[None])[0].log_softmax(-1)
                nll.append(-sum(float(log_probs[i - 1, ids[i]]) for i in range(1, len(ids)) if supervised[i]))
            answers.append(int(np.argmin(nll)))
    same = sum(a == b for a, b in zip(*chosen, strict=True)) / len(questions)
    numbers = KL().summary([{"model": "model", **row} for row in KL().measure(of, str(task), nothing)])
    assert numbers[f"same_choice/{task}"] == pytest.approx(same)
    assert 0 < same < 1


def test_tables_and_page(of: Subject, tmp_path: Path) -> None:
    """What is written is read back as it was, tokens that look like numbers included."""
    options = Options(
        {"kl": KL(changed=5)}, tmp_path / "out", of.model.folder, base=of.origin.folder, text=TEXTS, limit=8,
        world=WORLD, batch_tokens=512, device="cpu",
    )  # fmt: skip
    folder = analyze(options)
    table = folder.read_table("kl")
    measured = [row for text in TEXTS for row in KL(changed=5).measure(of, text, nothing)]
    assert len(table) == len(measured)
    for read, row in zip(table, measured, strict=True):
        # the run adds columns of its own
        assert {key: str(value) for key, value in read.items() if key in row} == {
            key: str(value) for key, value in row.items()
        }
    page = (folder.path / "index.html").read_text(encoding="utf-8")
    shown = only(measured, "changed")[0]
    assert str(shown["context"]).replace('"', "&#34;") in page
    assert page.count("<figure") == 2 + 4 * len(TEXTS)


WRONG = [
    ({"changed": -1}, "changed = -1: expected at least 0"),
    ({"context": 0}, "context = 0: expected at least 1"),
    ({"by": "both"}, "by = 'both': expected forward or reverse"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[next(iter(options)) for options, _ in WRONG])
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KL(**options)


def test_another_tokenizer_is_refused(of: Subject, tmp_path: Path) -> None:
    """Of one shape, but with other tokens for the same text."""
    base = write_model(tmp_path / "base", **SHAPE)
    for file in base.glob("tokenizer*"):
        file.unlink()
    write_tokenizer(byte_level_tokenizer(), tmp_path / "other")
    for file in (tmp_path / "other").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    text = tmp_path / "some.txt"
    text.write_text("ba be bi", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text = .*some.txt': .*model and .*base make other tokens of it"):
        KL().check(subject(of.model.folder, base, (str(text),)))
