"""Rows of any common kind, normalised to a list of messages.

The kind is detected by the fields of the row itself, in the order of ``KINDS``, so one file may mix kinds. It gives up
tool calls and content in parts (images): a turn is text. A row that does not fit is an error that names its file and
line; none is skipped.
"""

from __future__ import annotations

from typing import Any

from lit_consistency.data.sources.files import take_text

Messages = list[dict[str, str]]

ROLES = ("system", "user", "assistant")

# names of the speakers that occur in ShareGPT files
SPEAKERS = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}

PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))

KINDS = (
    "messages (role, content)",
    "conversations (from, value)",
    "instruction/input/output",
    "prompt/completion",
    "prompt/response",
    "question/answer",
)


def messages_of(row: Any, place: str) -> Messages:
    """The turns of a conversation.

    Args:
        row: One value of a file, an object with the fields of one of ``KINDS``.
        place: Where it stands, ``file:line``, for errors.

    Returns:
        Turns with ``role`` and ``content``; at least one is the assistant's, and none of those is empty.

    Raises:
        ValueError: A field is missing or of the wrong type, a role is unknown, a completion is empty, no turn is the
            assistant's.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{place}: a {type(row).__name__}; expected an object with the fields of {'; '.join(KINDS)}")
    # Parquet files hold every column of every kind; those that a row does not use are null
    fields = {key: value for key, value in row.items() if value is not None}
    if "messages" in fields:
        messages = _turns(fields["messages"], place, "messages", "role", "content", {role: role for role in ROLES})
    elif "conversations" in fields:
        messages = _turns(fields["conversations"], place, "conversations", "from", "value", SPEAKERS)
    elif "instruction" in fields:
        messages = [_instruction(fields, place), _answer(fields, "output", "response", place=place)]
    else:
        messages = _pair(fields, place)
    if "system" in fields and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": take_text(fields, "system", place)})
    if all(message["role"] != "assistant" for message in messages):
        raise ValueError(f"{place}: no turn of the assistant; expected at least one, there is nothing to learn")
    for number, message in enumerate(messages, start=1):
        if message["role"] == "assistant" and not message["content"].strip():
            raise ValueError(f"{place}: turn {number}: the completion is empty; expected text")
        if message["role"] == "system" and number > 1:
            raise ValueError(f"{place}: turn {number}: a system turn; expected it only as the first")
    return messages


def held_out_by(messages: Messages) -> str:
    """The text that decides whether a conversation is held out: its turns up to the first answer.

    Several answers to one question have it in common, also where the question is spaced otherwise. A conversation
    without a question, which the assistant begins, is told from others by all of its turns.
    """
    first_answer = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    prompt = messages[:first_answer]
    asked = any(message["role"] == "user" and message["content"].strip() for message in prompt)
    turns = [(message["role"], " ".join(message["content"].split())) for message in (prompt if asked else messages)]
    return "\x1e".join(f"{role}\x1f{content}" for role, content in turns)


def _turns(turns: Any, place: str, field: str, speaker: str, text: str, roles: dict[str, str]) -> Messages:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{place}: {field} = {turns!r:.80}; expected a list of turns with {speaker!r} and {text!r}")
    messages = []
    for number, turn in enumerate(turns, start=1):
        where = f"{place}: {field}, turn {number}"
        if not isinstance(turn, dict):
            raise ValueError(f"{where}: a {type(turn).__name__}; expected an object with {speaker!r} and {text!r}")
        role = take_text(turn, speaker, where)
        if role not in roles:
            raise ValueError(f"{where}: {speaker} = {role!r}; expected one of {', '.join(roles)}")
        messages.append({"role": roles[role], "content": take_text(turn, text, where)})
    return messages


def _instruction(fields: dict[str, Any], place: str) -> dict[str, str]:
    instruction = take_text(fields, "instruction", place)
    extra = take_text(fields, "input", place) if "input" in fields else ""
    content = f"{instruction}\n\n{extra}" if extra else instruction
    return {"role": "user", "content": content, "instruction": instruction, "input": extra}


def _answer(fields: dict[str, Any], *names: str, place: str) -> dict[str, str]:
    for name in names:
        if name in fields:
            return {"role": "assistant", "content": take_text(fields, name, place)}
    raise ValueError(f"{place}: no field {' or '.join(map(repr, names))}; it has {', '.join(map(repr, fields))}")


def _pair(fields: dict[str, Any], place: str) -> Messages:
    for prompt, completion in PAIRS:
        if prompt in fields and completion in fields:
            question = {"role": "user", "content": take_text(fields, prompt, place)}
            return [question, _answer(fields, completion, place=place)]
    names = ", ".join(map(repr, fields)) or "none"
    raise ValueError(f"{place}: fields {names}; expected those of {'; '.join(KINDS)}")
