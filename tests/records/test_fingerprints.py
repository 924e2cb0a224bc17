"""Hashes of files, of what a number depends on, and of models."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from lit_consistency.records.fingerprints import fingerprint_of, seed_of, sha256, sha256_of_text, sha256_once
from lit_consistency.records.model_folder import model_fingerprint, weights_hash


def test_a_file_is_hashed_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(3_000_000))
    assert sha256(file) == sha256_once(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(b"other")
    assert sha256_once(file) == sha256_of_text("other")


def test_the_order_of_keys_counts_unless_it_is_told_not_to() -> None:
    one, two = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    assert fingerprint_of(one) != fingerprint_of(two)
    assert fingerprint_of(one, sort_keys=True) == fingerprint_of(two, sort_keys=True)
    assert fingerprint_of({"path": Path("a")}) == fingerprint_of({"path": "a"})


def test_a_seed_is_the_first_eight_bytes_of_the_hash_of_its_names() -> None:
    assert seed_of("task", 3) == int.from_bytes(hashlib.sha256(b"task\x003").digest()[:8], "big")
    assert 0 <= seed_of("half a character: \ud800") < 2**64


def test_a_model_is_its_weights_its_configuration_and_its_tokenizer(tmp_path: Path) -> None:
    for name in ("lit_model.pth", "model_config.yaml", "tokenizer.json", "provenance.yaml", "README.md"):
        (tmp_path / name).write_text(name)
    weights, model = weights_hash(tmp_path), model_fingerprint(tmp_path)
    for name in ("provenance.yaml", "README.md"):
        (tmp_path / name).write_text("another")
        assert model_fingerprint(tmp_path) == model
    marks = {model}
    for name in ("model_config.yaml", "tokenizer.json", "prompt_style.yaml"):
        (tmp_path / name).write_text("another")
        assert weights_hash(tmp_path) == weights
        marks.add(model_fingerprint(tmp_path))
    assert len(marks) == 4
