"""A model that writes in a chat ends its turn as the template does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_consistency.inference import decoding
from lit_consistency.inference.load import load_model
from lit_consistency.tasks.task import Engine
from tests.tasks.tiny import built, task_of, tiny_tokenizer

WRITING = {"kind": "generation", "metrics": ["exact_match"], "fields": {"Q": "{q}"}, "references": "{a}"}


@pytest.mark.parametrize(("form", "share_right"), [("chat", 1.0), ("default", 0.0)])
def test_the_end_of_the_turn_ends_what_is_written(
    form: str, share_right: float, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "chat", chat=True)
    task = task_of(tmp_path, **WRITING, data=[{"q": "who", "a": "she"}])
    encoded = built(task, tokenizer, form, block=128)
    assert encoded.end_tokens == ((tokenizer.token_to_id("<|im_end|>"),) if form == "chat" else ())
    script = iter(tokenizer.encode("she<|im_end|>" + "and so on " * 99).tolist())
    monkeypatch.setattr(decoding, "next_tokens", lambda *_: torch.tensor([next(script)]))
    model, _, device = load_model(tiny_folder, "cpu")
    measured = task.measure(encoded, Engine(model, tokenizer, 512, device))
    assert measured.values()["exact_match"] == share_right
