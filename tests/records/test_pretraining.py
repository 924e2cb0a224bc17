"""Which optimizer pretrained a base: recorded, given, guessed from a public name, or not known."""

from __future__ import annotations

import re

import pytest
from litgpt.config import name_to_config

from lit_consistency.records.model_card import model_card
from lit_consistency.records.pretraining import PUBLIC, Pretraining, mismatch_line, names_of, pretraining_of
from lit_consistency.records.provenance import Provenance

STAGE = {"model": "pythia-14m", "method": "full", "stage": "pretrain"}
IMPORTED = Provenance(
    **STAGE, optimizer="unknown", base="hub", source={"kind": "hub", "name": "moonshotai/Moonlight-16B-A3B"}
)


@pytest.mark.parametrize(
    ("names", "optimizer"),
    [
        (["meta-llama/Llama-3.2-1B"], "AdamW"),
        (["Qwen/Qwen3-0.6B"], "AdamW"),
        (["runs/mine", "OLMo-2-1124-7B"], "AdamW"),
        (["moonshotai/Kimi-K2-Base"], "Muon"),
        (["karpathy/nanochat-d20"], "Muon"),
        (["codellama/CodeLlama-7b-hf"], "AdamW"),
        (["google/codegemma-7b-it"], "AdamW"),
        (["cognitive/dolphin-mine"], "unknown"),
        (["runs/mine", "something"], "unknown"),
        ([], "unknown"),
    ],
)
def test_public_families_are_known_by_name_and_the_guess_is_said(names: list[str], optimizer: str) -> None:
    found = pretraining_of(None, names)
    assert (found.optimizer, found.is_guess) == (optimizer, optimizer != "unknown")
    assert (f"guessed from the name {names[-1] if names else ''}" in found.source) == found.is_guess


def test_every_family_of_litgpt_that_is_named_has_a_source() -> None:
    known = [name for name in name_to_config if pretraining_of(None, [name]).is_guess]
    assert len(known) > len(name_to_config) / 2
    assert all(re.search(r"arXiv \d{4}\.\d{5}|github\.com/", source) for _, _, source in PUBLIC)


def test_a_record_goes_before_a_name_and_the_users_word_before_both() -> None:
    recorded = Provenance(**STAGE, optimizer="Muon")
    assert pretraining_of(recorded, ["Llama-3.2-1B"])[:2] == ("Muon", "provenance.yaml of the base")
    assert pretraining_of(recorded, [], "sgd").optimizer == "SGD"
    assert pretraining_of(recorded, [], "SGD").source.endswith("provenance.yaml of the base says Muon")
    assert pretraining_of(recorded, [], "Muon").source == "model.pretraining_optimizer"
    assert pretraining_of(IMPORTED, ["Llama-3.2-1B"]).optimizer == "Muon"  # the name on the hub says most
    assert pretraining_of(IMPORTED.next_stage(**STAGE, optimizer="AdamW", base="x"), []).optimizer == "Muon"
    assert pretraining_of(None, [], has_base=False).optimizer is None


def test_what_is_not_known_is_no_match() -> None:
    guessed = pretraining_of(None, ["Llama-3.2-1B"])
    assert [guessed.mismatch(now) for now in ("MoFO", "Muon")] == [False, True]
    assert pretraining_of(None, []).mismatch("AdamW") is None
    assert pretraining_of(None, [], has_base=False).mismatch("AdamW") is False
    assert "was probably pretrained with AdamW, guessed" in str(mismatch_line("base", guessed, "Muon"))
    assert "says otherwise" in str(mismatch_line("base", guessed, "AdamW"))
    assert "is not known" in str(mismatch_line("base", pretraining_of(None, []), "AdamW"))
    assert mismatch_line("base", Pretraining("AdamW", "provenance.yaml of the base"), "MoFO") is None
    assert mismatch_line("base", pretraining_of(None, [], has_base=False), "AdamW") is None
    assert names_of(("/", "a", "ORG", "MODEL"), None, "pythia-14m") == ["ORG/MODEL", "pythia-14m"]


def test_the_model_card_says_what_was_guessed_and_what_is_not_known() -> None:
    tuned = IMPORTED.next_stage(**STAGE, optimizer="AdamW", base="x")
    assert "Pretrained with Muon: guessed from the name moonshotai/Moonlight-16B-A3B" in model_card("m", "x", tuned, {})
    given = {"pretraining_optimizer": "SGD", "pretraining_optimizer_source": "model.pretraining_optimizer"}
    assert "Pretrained with SGD: model.pretraining_optimizer." in model_card("m", "x", tuned, given)
    nameless = Provenance(**STAGE, optimizer="unknown", base="hub").next_stage(**STAGE, optimizer="AdamW", base="x")
    assert "Which optimizer pretrained it is not known." in model_card("m", "x", nameless, {})
    recorded = Provenance(**STAGE, optimizer="Muon").next_stage(**STAGE, optimizer="AdamW", base="x")
    assert "retrained" not in model_card("m", "x", recorded, {})  # the stages say it
