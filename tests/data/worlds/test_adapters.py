"""Worlds as sources and as rows."""

from __future__ import annotations

import json

import jsonargparse
import pytest

from lit_consistency.data import Rows, Source
from lit_consistency.data.worlds import Biographies, MarkovChains, ModularArithmetic, WorldRows, WorldText

PEOPLE = Biographies(n_people=6, n_new=3, n_exposures=2)
FROM_YAML = """
source:
  class_path: lit_consistency.data.worlds.WorldText
  init_args:
    world:
      class_path: lit_consistency.data.worlds.Biographies
      init_args: {n_people: 6, n_new: 3, n_exposures: 2}
    part: held_out
rows:
  class_path: lit_consistency.data.worlds.WorldRows
  init_args:
    world: {class_path: lit_consistency.data.worlds.ModularArithmetic, init_args: {p: 7, operation: x}}
    task: problems
    n_rows: 4
"""


def parser_of_worlds() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--cfg", action="config")
    parser.add_argument("--source", type=Source)
    parser.add_argument("--rows", type=Rows)
    return parser


def test_the_source_hands_out_the_documents_and_the_tokenizer() -> None:
    for part in ("train", "held_out"):
        assert list(WorldText(PEOPLE, part).documents()) == list(PEOPLE.documents(part))
    tokenizer = WorldText(PEOPLE).default_tokenizer()
    assert tokenizer is not None
    assert tokenizer.to_str() == PEOPLE.tokenizer().to_str()


def test_rows_are_turns_of_user_and_assistant_with_their_place() -> None:
    rows = list(WorldRows(PEOPLE, "qa", "test").rows())
    pairs = [(row.messages[0]["content"], row.messages[1]["content"]) for row in rows]
    assert pairs == PEOPLE.rows("qa", "test")
    assert {tuple(turn["role"] for turn in row.messages) for row in rows} == {("user", "assistant")}
    assert rows[3].place == "Biographies/qa/test:3"
    tokenizer = WorldRows(PEOPLE, "qa").default_tokenizer()
    assert tokenizer is not None
    assert tokenizer.to_str() == PEOPLE.tokenizer().to_str()


def test_fewer_rows_are_the_first_ones() -> None:
    everything = list(WorldRows(PEOPLE, "new_people").rows())
    assert list(WorldRows(PEOPLE, "new_people", n_rows=5).rows()) == everything[:5]


def test_fingerprints_are_json_and_differ_wherever_the_text_does() -> None:
    sources: list[Source | Rows] = [
        WorldText(PEOPLE),
        WorldText(PEOPLE, "held_out"),
        WorldText(Biographies(n_people=6, n_new=3, n_exposures=2, seed=1)),
        WorldText(ModularArithmetic()),
        WorldText(MarkovChains()),
        WorldRows(PEOPLE, "qa"),
        WorldRows(PEOPLE, "qa", "test"),
        WorldRows(PEOPLE, "new_people"),
        WorldRows(PEOPLE, "new_people", n_rows=5),
    ]
    prints = [json.dumps(source.fingerprint(), sort_keys=True) for source in sources]
    assert len(set(prints)) == len(prints)


def test_using_a_world_leaves_its_fingerprint_as_it_was() -> None:
    world = Biographies(n_people=6, n_new=3, n_exposures=2)
    before = WorldText(world).fingerprint()
    list(world.documents())
    assert WorldText(world).fingerprint() == before


def test_yaml_builds_the_same_source_and_rows() -> None:
    parser = parser_of_worlds()
    built = parser.instantiate_classes(parser.parse_string(FROM_YAML))
    assert built.source.fingerprint() == WorldText(PEOPLE, "held_out").fingerprint()
    expected = WorldRows(ModularArithmetic(p=7, operation="x"), "problems", n_rows=4)
    assert list(built.rows.rows()) == list(expected.rows())


def test_yaml_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(jsonargparse.ArgumentError, match="n_peeple"):
        parser_of_worlds().parse_string(FROM_YAML.replace("n_people", "n_peeple"))


def test_wrong_choices_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="part = 'test': expected one of train, held_out"):
        WorldText(PEOPLE, "test")
    with pytest.raises(ValueError, match="task = 'q': expected one of new_people, qa"):
        WorldRows(PEOPLE, "q")
    with pytest.raises(ValueError, match="split = 'val': expected one of train, test"):
        WorldRows(PEOPLE, "qa", "val")
    with pytest.raises(ValueError, match="n_rows = 0: expected at least 1"):
        WorldRows(PEOPLE, "qa", n_rows=0)
