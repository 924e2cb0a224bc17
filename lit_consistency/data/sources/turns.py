"""The turns of a conversation, as files of many makers spell them, brought to one form.

A turn is ``{"role": "system" | "user" | "assistant" | "tool", "content": text}``, and where the file has them:

* ``reasoning_content``, what the assistant thinks before it answers, and ``tool_calls``, in OpenAI's form with the
  arguments as an object, as chat templates want them;
* ``name`` and ``tool_call_id`` of a turn;
* ``learned``: whether its answer is learned, where the file says so (``weight``, ``train``, ``training``, ``loss``);
* ``instruction`` and ``input`` of a user's turn, for prompt styles that write them apart; ``content`` holds both.

Sources: https://platform.openai.com/docs/api-reference/chat (roles, tool_calls, parts),
https://platform.openai.com/docs/guides/supervised-fine-tuning (weight),
https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md (speakers of ShareGPT files, with function_call and
observation), https://docs.axolotl.ai/docs/dataset-formats/conversation.html (train). It gives up images and sound: a
turn is text, and any other part is refused by its name.
"""

from __future__ import annotations

from typing import Any

from lit_consistency.data.sources.files import parse_json, take_text

Messages = list[dict[str, Any]]

SPEAKERS = {
    "system": "system",
    "developer": "system",  # OpenAI's newer word
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",  # the value is the call
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
}

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a thought that is kept apart from the answer, in files and in chat templates."""
FLAGS = ("weight", "train", "training", "loss")
PASSED_ON = ("name", "tool_call_id")


def read_turns(turns: Any, field: str, place: str, unused: set[str]) -> Messages:
    """The turns of a list, or of the text of its JSON.

    Args:
        turns: The field's value.
        field: The field's name.
        place: Where the row stands, for errors.
        unused: Takes the names of the turns' fields that are not read, as ``messages.id``.

    Raises:
        ValueError: It is no list of turns, or a turn is bad; names the place and the turn.
    """
    turns = _from_json(turns, place, field)
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{place}: {field} = {turns!r:.80}; expected a list of turns with 'role' and 'content'")
    return [_turn(turn, field, f"{place}: {field}, turn {n}", unused) for n, turn in enumerate(turns, start=1)]


def read_tools(tools: Any, place: str) -> list[dict[str, Any]] | None:
    """The tools that the assistant may call, a list of objects or the text of its JSON; None where there are none."""
    tools = _from_json(tools, place, "tools")
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{place}: tools = {tools!r:.80}; expected a list of objects, or its JSON")
    return tools


def is_empty(value: Any) -> bool:
    """Whether a field says nothing: null, white space, or an empty list or object."""
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())


def _turn(turn: Any, field: str, where: str, unused: set[str]) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise ValueError(f"{where}: a {type(turn).__name__}; expected an object with 'role' and 'content'")
    speaker = "from" if "from" in turn and "role" not in turn else "role"
    text = "value" if "value" in turn and "content" not in turn else "content"
    role = take_text(turn, speaker, where)
    if role not in SPEAKERS:
        raise ValueError(f"{where}: {speaker} = {role!r}; expected one of {', '.join(SPEAKERS)}")
    fields = {key: value for key, value in turn.items() if not is_empty(value)}
    message: dict[str, Any] = {"role": SPEAKERS[role], "content": ""}
    read = {speaker, text, *PASSED_ON, *FLAGS}
    if role == "function_call":
        message["tool_calls"] = _calls(turn.get(text), f"{where}, {text}")
    elif "tool_calls" in fields or "function_call" in fields:
        name = "tool_calls" if "tool_calls" in fields else "function_call"
        if message["role"] != "assistant":
            raise ValueError(f"{where}: {name} in a turn of role {role!r}; expected them of the assistant alone")
        message["tool_calls"] = _calls(fields[name], f"{where}, {name}")
        read.add(name)
    if text in fields or "tool_calls" not in message:  # beside calls, no text is needed
        message["content"] = _content(turn, text, where) if role != "function_call" else ""
    thought = next((name for name in REASONING if name in fields), None)
    if thought is not None and message["role"] == "assistant":
        message["reasoning_content"] = take_text(fields, thought, where)
        read |= {name for name in REASONING if fields.get(name) == fields[thought]}
    message |= {name: take_text(fields, name, where) for name in PASSED_ON if name in fields}
    if (learned := _learned(fields, where)) is not None:
        message["learned"] = learned
    if learned and message["role"] != "assistant":  # only answers are learned
        del message["learned"]
        read -= set(FLAGS)
    unused |= {f"{field}.{name}" for name in fields if name not in read}
    return message


def _content(turn: dict[str, Any], name: str, where: str) -> str:
    """The text, or the texts of all parts; a line each, as servers join them for templates that want text."""
    parts = turn.get(name)
    if not isinstance(parts, list):
        return take_text(turn, name, where)
    texts = []
    for number, part in enumerate(parts, start=1):
        if isinstance(part, dict) and part.get("type", "text") != "text":
            raise ValueError(f"{where}: {name}, part {number}: type = {part['type']!r}; expected 'text', the only kind")
        texts.append(part if isinstance(part, str) else take_text(part, "text", f"{where}: {name}, part {number}"))
    return "\n".join(texts)


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    calls = _from_json(calls, where, "calls")
    made = []
    for number, call in enumerate(calls if isinstance(calls, list) else [calls], start=1):
        place = f"{where}, call {number}"
        function = call.get("function", call) if isinstance(call, dict) else call
        name = take_text(function, "name", place)
        # with arguments as text, as OpenAI gives them, templates would write JSON within JSON
        arguments = function.get("arguments", function.get("parameters"))
        if isinstance(arguments, str):
            arguments = parse_json(arguments, f"{place}, arguments") if arguments.strip() else {}
        kept = {"id": call["id"]} if call.get("id") is not None else {}
        made.append({**kept, "type": "function", "function": {"name": name, "arguments": arguments or {}}})
    return made


def _learned(fields: dict[str, Any], where: str) -> bool | None:
    said = {name: fields[name] for name in FLAGS if name in fields}
    for name, value in said.items():
        if isinstance(value, str) or value not in (0, 1):
            raise ValueError(f"{where}: {name} = {value!r}; expected 0 or 1 (or false or true)")
    if len(set(map(bool, said.values()))) > 1:
        raise ValueError(f"{where}: {said}; expected them to agree")
    return bool(next(iter(said.values()))) if said else None


def _from_json(value: Any, place: str, field: str) -> Any:
    """The value of a text that holds JSON: tables keep lists of turns, and tools, as text."""
    is_json = isinstance(value, str) and value.lstrip()[:1] in ("[", "{")
    return parse_json(value, f"{place}: {field}") if is_json else value
