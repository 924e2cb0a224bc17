from __future__ import annotations

import json
from typing import Any

import pytest

from lit_consistency.data.sources.conversations import (
    DetectedFormat,
    check_columns,
    conversation_of,
    detected_formats,
    held_out_by,
)
from lit_consistency.data.sources.turns import Messages
from tests.data.helpers import assistant, system, user

PLAIN = [user("2+2?"), assistant("4")]


def messages_of(row: Any, place: str) -> Messages:
    return conversation_of(row, place).messages


@pytest.mark.parametrize(
    "row",
    [
        {"messages": PLAIN},
        {"messages": json.dumps(PLAIN)},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "system": " "},
        {"conversation": PLAIN, "tools": "[]"},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": [user("2+2?")], "completion": [assistant("4")]},
        {"prompt": "2+2?", "response": "4", "completion": None},
        {"instruction": "2+2?", "input": "", "context": None, "output": "4", "history": []},
        {"query": "2+2?", "response": "4"},
        {"problem": "2+2?", "solution": "4"},
        {"question": "2+2?", "answer": "4"},
        {"system_prompt": "", "question": "2+2?", "response": "4"},
        {"inputs": "2+2?", "targets": "4"},
        {"input": "2+2?", "output": "4"},
    ],
)
def test_every_format_becomes_messages(row: dict[str, Any]) -> None:
    conversation = conversation_of(row, "f:1")
    assert (conversation.messages, conversation.unused) == (PLAIN, ())
    assert set(conversation.used) <= row.keys()


@pytest.mark.parametrize(
    ("row", "extra"),
    [
        ({"instruction": "Add.", "input": "2, 2", "response": "4"}, "2, 2"),
        ({"instruction": "Add.", "context": "2, 2", "response": "4"}, "2, 2"),  # Dolly
        ({"prompt": "Add.", "input": "2, 2", "completion": "4"}, "2, 2"),
        ({"question": "Add.", "context": "Numbers:", "input": "2, 2", "answer": "4"}, "Numbers:\n\n2, 2"),
    ],
)
def test_input_and_context_stand_behind_the_question_and_apart(row: dict[str, Any], extra: str) -> None:
    conversation = conversation_of(row, "f:1")
    asked = {**user(f"Add.\n\n{extra}"), "instruction": "Add.", "input": extra}
    assert (conversation.messages, conversation.unused) == ([asked, assistant("4")], ())


def test_history_is_earlier_turns() -> None:
    row = {"instruction": "And its height?", "history": [["How wide?", "Nine metres."]], "output": "Forty metres."}
    earlier = [user("How wide?"), assistant("Nine metres.")]
    assert messages_of(row, "f:1") == [*earlier, user("And its height?"), assistant("Forty metres.")]


def test_a_system_text_becomes_the_first_turn() -> None:
    row = {"system": "Be brief.", "prompt": "2+2?", "completion": "4"}
    assert messages_of(row, "f:1") == [system("Be brief."), *PLAIN]
    assert messages_of({"system": "a", "messages": [system("a"), *PLAIN]}, "f:1") == [system("a"), *PLAIN]
    assert messages_of({"messages": [{"role": "developer", "content": "a"}, *PLAIN]}, "f:1") == [system("a"), *PLAIN]


def test_of_a_prompt_in_turns_no_answer_is_learned() -> None:
    row = {"prompt": [*PLAIN, user("Sure?")], "completion": [assistant("Yes.")]}
    unlearned = {**assistant("4"), "learned": False}
    assert messages_of(row, "f:1") == [user("2+2?"), unlearned, user("Sure?"), assistant("Yes.")]


def test_tools_and_thoughts_are_kept() -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    for given in (tools, json.dumps(tools)):
        assert conversation_of({"messages": PLAIN, "tools": given}, "f:1").tools == tools
    row = {"question": "2+2?", "reasoning_content": "Two and two.", "answer": "4"}
    assert messages_of(row, "f:1")[-1] == {**assistant("4"), "reasoning_content": "Two and two."}


def test_a_text_is_learned_as_it_stands() -> None:
    row = conversation_of({"text": "Once upon a time."}, "f:1")
    assert (row.plain, row.messages, row.format) == (True, [assistant("Once upon a time.")], "text")
    assert not conversation_of({"text": "x", "prompt": "a", "completion": "b"}, "f:1").plain


def test_what_is_not_read_is_named_and_counted() -> None:
    rows: list[dict[str, Any]] = [
        {"query": "2+2?", "response": "4", "type": "sum", "score": 0, "note": " "},
        {"query": "2+2?", "response": "4", "type": "sum", "original_question": "x"},
        {"messages": [{**user("2+2?"), "id": 7, "weight": 1}, assistant("4")], "prompt": "2+2?"},
    ]
    read = [conversation_of(row, f"f:{number}") for number, row in enumerate(rows)]
    metamath, turns = detected_formats(read)
    assert metamath == DetectedFormat(
        "query/response", 2, ("query", "response"), {"type": 2, "score": 1, "original_question": 1}
    )
    assert turns == DetectedFormat("messages", 1, ("messages",), dict.fromkeys(read[2].unused, 1))
    assert read[2].unused == ("messages.id", "messages.weight", "prompt")
    assert str(metamath).startswith(
        "query/response (2 rows); used: query, response; not used: original_question (1 row)"
    )


def test_a_column_map_names_the_fields_of_any_row() -> None:
    row = {"Q": "2+2?", "A": "4", "sys": "Be brief.", "topic": "sums", "prompt": "not this"}
    columns = {"prompt": "Q", "completion": "A", "system": "sys", "input": "absent"}
    read = conversation_of(row, "f:1", columns)
    assert read.messages == [system("Be brief."), *PLAIN]
    assert (read.used, read.unused) == (("Q", "A", "sys"), ("prompt", "topic"))
    assert conversation_of({"chat": PLAIN}, "f:1", {"messages": "chat"}).messages == PLAIN
    assert conversation_of({"body": "x"}, "f:1", {"text": "body"}).plain
    with pytest.raises(ValueError, match=r"f:1: no field 'A', which columns.completion names; it has 'Q'"):
        conversation_of({"Q": "2+2?"}, "f:1", {"prompt": "Q", "completion": "A"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"promt": "Q", "completion": "A"}, "columns: promt: expected names among messages, prompt, completion"),
        ({"prompt": "Q"}, "columns = .*: expected prompt and completion, or messages, or text"),
        ({"prompt": "Q", "completion": "A", "text": "t"}, "expected prompt and completion, or messages, or text"),
        ({"system": "s"}, "expected prompt and completion, or messages, or text"),
    ],
)
def test_a_bad_column_map_is_named(columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_columns(columns)


BAD_ROWS: list[tuple[Any, str]] = [
    ([1], "f:7: a list; expected an object with the fields of messages"),
    ({"body": "x"}, "f:7: fields 'body'; expected those of messages; .*; text, or `columns` that name yours"),
    ({"prompt": "x"}, "f:7: fields 'prompt'; expected those"),
    ({"prompt": "x", "chosen": "y", "rejected": "z"}, "f:7: fields 'prompt', 'chosen', 'rejected'; expected those"),
    ({"prompt": "x", "completion": 4}, "f:7: completion is a int; expected text"),
    ({"prompt": "x", "completion": "  "}, "f:7: turn 2: the completion is empty; expected text"),
    ({"text": " "}, "f:7: turn 1: the completion is empty; expected text"),
    ({"instruction": "x"}, "f:7: fields 'instruction'; expected those"),
    ({"instruction": "x", "input": 1, "output": "y"}, "f:7: input is a int; expected text"),
    (
        {"instruction": "x", "history": [["a"]], "output": "y"},
        "f:7: history, pair 1: .*; expected a list of",
    ),
    (
        {"prompt": [user("x")], "input": "y", "completion": "z"},
        "f:7: input beside a prompt of turns; expected",
    ),
    ({"messages": [system("a"), *PLAIN], "system": "b"}, "f:7: system = 'b' and another system turn; expected one"),
    ({"messages": PLAIN, "tools": ["x"]}, r"f:7: tools = \['x'\]; expected a list of objects"),
    ({"messages": []}, r"f:7: messages = \[\]; expected a list of turns"),
    ({"messages": "hello"}, "f:7: messages = 'hello'; expected a list of turns"),
    ({"messages": "[{"}, "f:7: messages: not JSON"),
    ({"messages": [user("x")]}, "f:7: no turn of the assistant; expected at least one"),
    ({"messages": [user("x"), assistant("")]}, "f:7: turn 2: the completion is empty"),
    ({"messages": [*PLAIN, system("late")]}, "f:7: turn 3: a system turn; expected it only as the first"),
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
