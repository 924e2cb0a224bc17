from __future__ import annotations

from typing import Any

import pytest

from lit_consistency.data.sources.turns import read_turns
from tests.data.helpers import assistant, user

WEATHER = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bergen"}}}


def turn(given: dict[str, Any], unused: set[str] | None = None) -> dict[str, Any]:
    return read_turns([given], "messages", "f:7", set() if unused is None else unused)[0]


@pytest.mark.parametrize("key", ["role", "from"])
@pytest.mark.parametrize(
    ("speaker", "role"),
    [("human", "user"), ("gpt", "assistant"), ("developer", "system"), ("observation", "tool"), ("ipython", "tool")],
)
def test_speakers_have_one_name_each(key: str, speaker: str, role: str) -> None:
    for text in ("content", "value"):
        assert turn({key: speaker, text: "x"}) == {"role": role, "content": "x"}


def test_content_in_parts_is_text_in_lines() -> None:
    assert turn({"role": "user", "content": [{"type": "text", "text": "Grass?"}]}) == user("Grass?")
    assert turn({"role": "user", "content": ["One", {"text": "two"}]}) == user("One\ntwo")


@pytest.mark.parametrize(
    "given",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a1", **WEATHER}]},
        {"role": "assistant", "tool_calls": [{**WEATHER["function"], "id": "a1"}]},  # type: ignore[dict-item]
        {
            "role": "assistant",
            "content": "",
            "tool_calls": '[{"id": "a1", "function": {"name": "weather", "arguments": "{\\"city\\": \\"Bergen\\"}"}}]',
        },
    ],
)
def test_calls_of_tools_have_openais_form_with_arguments_as_an_object(given: dict[str, Any]) -> None:
    assert turn(given) == {"role": "assistant", "content": "", "tool_calls": [{"id": "a1", **WEATHER}]}


def test_calls_in_older_forms() -> None:
    call = {"name": "weather", "arguments": '{"city": "Bergen"}'}
    expected = {"role": "assistant", "content": "", "tool_calls": [WEATHER]}
    assert turn({"role": "assistant", "content": None, "function_call": call}) == expected
    assert turn({"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Bergen"}}'}) == expected
    assert turn({"role": "function", "name": "weather", "content": "rain"}) == {
        "role": "tool",
        "content": "rain",
        "name": "weather",
    }


@pytest.mark.parametrize("flag", ["weight", "train", "training", "loss"])
def test_an_answer_that_is_not_to_be_learned_is_marked(flag: str) -> None:
    assert turn({**assistant("5"), flag: 0}) == turn({**assistant("5"), flag: False}) == marked(assistant("5"), False)
    assert turn({**assistant("5"), flag: 1}) == marked(assistant("5"), True)
    unused: set[str] = set()
    assert turn({**user("5"), flag: True}, unused) == user("5")
    assert unused == {f"messages.{flag}"}


def marked(message: dict[str, str], learned: bool) -> dict[str, Any]:
    return {**message, "learned": learned}


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_has_one_name(name: str) -> None:
    assert turn({**assistant("9"), name: "17 - 8"}) == {**assistant("9"), "reasoning_content": "17 - 8"}


def test_fields_that_are_not_read_are_named_unless_they_say_nothing() -> None:
    unused: set[str] = set()
    turn({**user("x"), "id": 0, "refusal": None, "annotations": [], "thinking": "hm"}, unused)
    turn({**assistant("x"), "thinking": "hm", "reasoning": "other", "reasoning_content": "hm"}, unused)
    assert unused == {"messages.id", "messages.thinking", "messages.reasoning"}


BAD_TURNS: list[tuple[Any, str]] = [
    ("hello", "f:7: messages, turn 1: a str; expected an object"),
    ({"role": "user"}, "turn 1: no field 'content'; it has 'role'"),
    ({"from": "gpt", "value": None}, "turn 1: value is a NoneType; expected text"),
    ({"role": "bot", "content": "x"}, "turn 1: role = 'bot'; expected one of system, developer, user"),
    ({"role": "user", "content": [{"type": "image_url"}]}, "content, part 1: type = 'image_url'; expected 'text'"),
    ({"role": "user", "content": [{"type": "text"}]}, "content, part 1: no field 'text'"),
    ({**user("x"), "tool_calls": [WEATHER]}, "tool_calls in a turn of role 'user'; expected them of the assistant"),
    ({**assistant("x"), "tool_calls": [{"id": 1}]}, "tool_calls, call 1: no field 'name'"),
    ({**assistant("x"), "function_call": {"name": "f", "arguments": "{"}}, "call 1, arguments: not JSON"),
    ({**assistant("x"), "weight": 0.5}, r"turn 1: weight = 0.5; expected 0 or 1 \(or false or true\)"),
    ({**assistant("x"), "train": "no"}, "turn 1: train = 'no'; expected 0 or 1"),
    ({**assistant("x"), "train": True, "weight": 0}, "expected them to agree"),
    ({**assistant("x"), "thinking": [1]}, "turn 1: thinking is a list; expected text"),
]


@pytest.mark.parametrize(("given", "message"), BAD_TURNS)
def test_a_bad_turn_is_named(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        turn(given)
