from __future__ import annotations

from typing import Any

import pytest

from lit_consistency.data.sources.conversations import held_out_by, messages_of
from tests.data.helpers import assistant, system, user

PLAIN = [user("2+2?"), assistant("4")]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": PLAIN, "id": 3},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": "2+2?", "response": "4", "completion": None},
        {"question": "2+2?", "answer": "4"},
    ],
)
def test_every_kind_becomes_messages(row: dict[str, Any]) -> None:
    assert messages_of(row, "f:1") == PLAIN


@pytest.mark.parametrize("name", ["output", "response"])
def test_alpaca_keeps_instruction_and_input_apart_and_together(name: str) -> None:
    messages = messages_of({"instruction": "Add.", "input": "2, 2", name: "4"}, "f:1")
    assert messages == [{**user("Add.\n\n2, 2"), "instruction": "Add.", "input": "2, 2"}, assistant("4")]
    assert messages_of({"instruction": "Add.", "input": "", name: "4"}, "f:1")[0]["content"] == "Add."


def test_a_system_text_becomes_the_first_turn() -> None:
    row = {"system": "Be brief.", "prompt": "2+2?", "completion": "4"}
    assert messages_of(row, "f:1") == [system("Be brief."), *PLAIN]
    in_turns = {"conversations": [{"from": "system", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "c"}
    assert messages_of(in_turns, "f:1") == [system("a"), assistant("b")]


BAD_ROWS: list[tuple[Any, str]] = [
    ([1], "f:7: a list; expected an object with the fields of messages"),
    ({"text": "x"}, "f:7: fields 'text'; expected those of messages"),
    ({"prompt": "x"}, "f:7: fields 'prompt'; expected those"),
    ({"prompt": "x", "completion": 4}, "f:7: completion is a int; expected text"),
    ({"prompt": "x", "completion": "  "}, "f:7: turn 2: the completion is empty; expected text"),
    ({"instruction": "x"}, "f:7: no field 'output' or 'response'; it has 'instruction'"),
    ({"instruction": "x", "input": 1, "output": "y"}, "f:7: input is a int; expected text"),
    ({"messages": []}, r"f:7: messages = \[\]; expected a list of turns"),
    ({"messages": "hello"}, "f:7: messages = 'hello'; expected a list of turns"),
    ({"messages": ["hello"]}, "f:7: messages, turn 1: a str; expected an object"),
    ({"messages": [{"role": "user"}]}, "f:7: messages, turn 1: no field 'content'; it has 'role'"),
    (
        {"messages": [{"role": "bot", "content": "x"}]},
        "turn 1: role = 'bot'; expected one of system, user, assistant",
    ),
    ({"messages": [user("x")]}, "f:7: no turn of the assistant; expected at least one"),
    ({"messages": [user("x"), assistant("")]}, "f:7: turn 2: the completion is empty"),
    ({"messages": [*PLAIN, system("late")]}, "f:7: turn 3: a system turn; expected it only as the first"),
    (
        {"conversations": [{"from": "gpt", "value": None}]},
        "conversations, turn 1: value is a NoneType; expected text",
    ),
    ({"conversations": [{"from": "tool", "value": "x"}]}, "from = 'tool'; expected one of system, human"),
]


def test_a_bad_row_names_place_and_expectation() -> None:
    for row, message in BAD_ROWS:
        with pytest.raises(ValueError, match=message):
            messages_of(row, "f:7")


def test_a_conversation_is_held_out_by_its_turns_before_the_first_answer() -> None:
    river = held_out_by([system("Be brief."), user("Name a river."), assistant("Loire")])
    assert river == held_out_by([system("Be brief."), user(" Name  a river.\n"), assistant("Elbe"), user("Why?")])
    assert river != held_out_by([user("Name a river."), assistant("Loire")])
    assert held_out_by([user("ab"), user("c"), assistant("x")]) != held_out_by([user("a"), user("bc"), assistant("x")])


def test_conversations_without_a_question_are_told_apart_by_all_of_their_turns() -> None:
    for first in ([], [user("")], [system("Write a poem.")]):
        assert held_out_by([*first, assistant("one")]) != held_out_by([*first, assistant("two")])
