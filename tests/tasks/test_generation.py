"""Written answers: what is cut out of them, compared, or run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.generate import Generation
from lit_consistency.inference.load import Loaded
from lit_consistency.tasks import generation
from lit_consistency.tasks.generation import GenerationTask, measure_generation, measure_programs
from lit_consistency.tasks.measured import Measured
from lit_consistency.tasks.task import EncodedTask
from lit_consistency.tasks.yaml_file import load_task
from tests.reference.generation import greedy
from tests.runs import ROOT
from tests.tasks.measuring import measure
from tests.tasks.tiny import built, task_of

WRITTEN: dict[str, Any] = {"kind": "generation", "fields": {"Q": "{q}"}, "references": "{a}"}
PROGRAM = {"fields": {"": "{q}"}, "program": "{q}", "answer_heading": "", "delimiter": "", "metrics": ["pass@1"]}


def asked(folder: Path, tokenizer: Tokenizer, rows: list[dict[str, Any]], **keys: Any) -> EncodedTask:
    options = {"max_new_tokens": 8, **keys.pop("generation", {})}
    return built(task_of(folder, **{**WRITTEN, **keys}, generation=options, data=rows), tokenizer)


def said(encoded: EncodedTask, *answers: list[str]) -> Measured:
    assert isinstance(encoded.task, GenerationTask)
    samples = [[Generation(text, [], "eos") for text in texts] for texts in answers]
    return measure_generation(encoded.task, encoded, samples)


def test_the_model_writes_what_one_forward_a_token_writes(loaded: Loaded, tmp_path: Path) -> None:
    rows = [{"q": f"the day {i}", "a": "x"} for i in range(4)]
    encoded = asked(tmp_path, loaded.tokenizer, rows, metrics=["exact_match"], generation={"stop": ["a"]})
    texts = [
        greedy(loaded.model, question.tokens, 8, loaded.tokenizer, stop=("a",)).text for question in encoded.questions
    ]
    advanced: list[int] = []
    measured = measure(loaded, encoded, advance=advanced.append)
    assert [record["texts"] for record in measured.records] == [[text] for text in texts]
    assert sum(advanced) == 4
    right = [{**row, "a": text} for row, text in zip(rows, texts, strict=True)]
    same = asked(tmp_path, loaded.tokenizer, right, metrics=["exact_match"], generation={"stop": ["a"]})
    assert measure(loaded, same).values() == {"exact_match": 1.0}


def test_numbers_are_extracted_from_answer_and_reference(tiny: Tokenizer, tmp_path: Path) -> None:
    rows = [{"q": "1+1", "a": "One and one.\n#### 2"}, {"q": "2.5k", "a": "#### 2,500"}, {"q": "1.5", "a": "#### 15"}]
    encoded = asked(tmp_path, tiny, rows, metrics=["exact_match"], extraction="gsm8k")
    measured = said(encoded, ["so #### 2."], ["#### 2500"], ["#### 1.5"])
    assert [record["score"] for record in measured.records] == [1.0, 1.0, 0.0]
    assert [record["prediction"] for record in measured.records] == ["2", "2500", "1.5"]
    assert measured.records[0]["texts"] == ["so #### 2."]
    assert measured.baselines == {"majority": 1 / 3}


def test_every_sign_counts_in_what_a_regular_expression_cuts_out(
    tiny: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    pattern = load_task("hub/metamathqa").extraction  # type: ignore[attr-defined]
    rows = [{"q": "x", "a": f"so The answer is: {n}"} for n in ("5", "\\frac{1}{2}", "15", "x")]
    encoded = asked(tmp_path, tiny, rows, metrics=["exact_match"], extraction=pattern)
    measured = said(encoded, *([f"The answer is: {n}\nQ"] for n in ("-5", "\\frac{12}", "1.5", "X.")))
    assert [record["score"] for record in measured.records] == [0.0, 0.0, 0.0, 1.0]


def test_samples_give_a_mean_a_majority_and_any_of_them(tiny: Tokenizer, tmp_path: Path) -> None:
    options = {"n_samples": 4, "temperature": 1.0}
    metrics = ["exact_match", "maj@3", "pass@1", "pass@4", "rouge_l"]
    encoded = asked(tmp_path, tiny, [{"q": "x", "a": ["The cat", "a dog"]}], metrics=metrics, generation=options)
    measured = said(encoded, ["cat", "dog.", "cat", "bird"])
    record = measured.records[0]
    assert [record[name] for name in metrics[:4]] == [0.75, 1.0, 0.75, 1.0]
    assert record["rouge_l"] == pytest.approx((2 / 3 + 2 / 3 + 2 / 3 + 0) / 4)
    assert record["score"] == 0.75
    assert measured.baselines == {"majority": 1.0}, "whoever always writes one of the accepted answers"


def test_a_prompt_leaves_room_for_what_is_written(tiny: Tokenizer, tmp_path: Path) -> None:
    task = task_of(
        tmp_path,
        **WRITTEN,
        metrics=["rouge_l"],
        data=[{"q": "why " * 50, "a": "so"}],
        generation={"max_new_tokens": 20},
    )
    (question,) = built(task, tiny, block=60).questions
    assert question.tokens is not None
    assert len(question.tokens) == 40
    assert question.n_truncated > 0
    assert question.references == ("so",)
    assert tiny.processor.decode(question.tokens.tolist()).endswith("\nAnswer:")
    with pytest.raises(ValueError, match=r"max_new_tokens = 20: expected less than the model's context of 20"):
        built(task, tiny, block=20)


def test_the_item_of_a_written_answer_is_prompt_and_reference(tiny: Tokenizer, tmp_path: Path) -> None:
    """Along it the divergence from the base is taken."""
    (question,) = asked(tmp_path, tiny, [{"q": "why", "a": ["so", "no"]}], metrics=["rouge_l"]).questions
    assert question.item is not None
    (candidate,) = question.item.candidates
    assert tiny.processor.decode(candidate.tokens.tolist()) == "Q: why\nAnswer: so"
    assert tiny.processor.decode(candidate.tokens[candidate.supervised].tolist()) == " so"


# -------------------- programs


def test_programs_are_run_with_their_tests_when_that_is_allowed(tiny: Tokenizer, tmp_path: Path) -> None:
    rows = [{"q": "\ndef add(a, b):\n    return", "a": "assert add(1, 2) == 3"}] * 2
    encoded = asked(tmp_path, tiny, rows, **PROGRAM)
    question = encoded.questions[0]
    assert question.prompt == question.labels[0] == rows[0]["q"], "white space and all"
    assert question.references == ("assert add(1, 2) == 3",)
    assert question.item is None, "the references are tests, no answers"
    written = [[Generation(text, [], "eos")] for text in (" a + b", " a - b")]
    assert isinstance(encoded.task, GenerationTask)
    measured = measure_programs(encoded.task, encoded, written, needed=())
    assert [record["score"] for record in measured.records] == [1.0, 0.0]
    assert [record["prediction"] for record in measured.records] == ["passed", "failed"]
    walls = {"network", "files", "processes"}
    for record in measured.records:
        assert walls <= set(record["confined"][0].split()) or "UNCONFINED" in str(measured.confined)
    assert str(measured.confined).startswith("programs ran ")


def test_a_model_s_programs_are_run_with_the_word_of_the_user_only(loaded: Loaded, tmp_path: Path) -> None:
    # what the model writes stands behind a comment sign, or in the way
    rows = [{"q": "x = 1  #", "a": "assert x == 1"}, {"q": "x = (", "a": "assert x == 1"}]
    encoded = asked(tmp_path, loaded.tokenizer, rows, **PROGRAM, generation={"max_new_tokens": 4, "stop": ["\n"]})
    allowed = {"allow_code_execution": True, "allow_unconfined_code": True}
    assert measure(loaded, encoded, **allowed).values() == {"pass@1": 0.5}
    with pytest.raises(ValueError, match="allow_code_execution"):
        measure(loaded, encoded)


def test_one_rank_runs_programs_and_the_others_get_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process plays one rank of two; what the other sends or gets is kept here."""
    result = Measured({}, [], [], [], {})
    sent: list[Any] = []
    rank = 0

    def broadcast(objects: list[Any], src: int) -> None:
        if rank == src:
            sent[:] = objects
        else:
            objects[:] = sent

    distributed = {"is_initialized": lambda: True, "get_world_size": lambda: 2, "get_rank": lambda: rank}
    for name, function in {**distributed, "broadcast_object_list": broadcast}.items():
        monkeypatch.setattr(generation.dist, name, function)
    assert generation._on_first_rank(lambda: result) is result
    rank = 1
    assert generation._on_first_rank(lambda: pytest.fail("programs ran on the second rank")) is result
    rank = 0
    with pytest.raises(OSError, match="no sandbox"):
        generation._on_first_rank(broken)
    rank = 1  # which gets the error, and does not wait
    with pytest.raises(OSError, match="no sandbox"):
        generation._on_first_rank(broken)


def broken() -> Measured:
    raise OSError("no sandbox")
