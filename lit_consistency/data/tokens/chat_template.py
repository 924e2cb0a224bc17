"""A tokenizer's own chat template, rendered in a sandbox, and where in the text the assistant speaks.

Source of the format: https://huggingface.co/docs/transformers/chat_templating (Jinja with trimmed blocks; variables
messages, tools, add_generation_prompt, bos_token, ...; a filter ``tojson`` without HTML escapes). A downloaded template
is foreign code, so it runs in jinja2's immutable sandbox. It gives up documents and the date: templates that ask for
today fall back to their fixed date, since tokens on disk must not depend on the day.

How the assistant's text is found: the conversation is rendered twice, once with its words and once with marks instead
of them. What stands between two marks is the template's own, so every boundary is exact whatever the words are. Where
the template takes answers apart (a thought that it sets between ``<think>`` tags of its own, calls of tools) there is a
rendering with a mark for each, and what that has in common with the text, before the mark and behind it, is the
template's own. Every piece of an answer has to stand there: a template that rewrites or drops one is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from os.path import commonprefix
from typing import Any, NamedTuple, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from lit_consistency.data.sources.turns import REASONING
from lit_consistency.data.tokens.bounded_template import BoundedEnvironment

Turns = Sequence[dict[str, Any]]
Tools = list[dict[str, Any]] | None

OURS = ("instruction", "input", "learned")
"""What a turn may hold for prompt styles and masks; all else is the template's, as in transformers."""
TAG = re.compile(r"(<[^<>\s]+>|\[/?[A-Z_]+\])")


class _Generation(jinja2.ext.Extension):
    """Reads `{% generation %}` blocks, with which some templates mark the assistant, as if unmarked."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Span(NamedTuple):
    """An answer in the text of its conversation.

    Attributes:
        start: Its first character, where generation would start.
        end: Behind its last one, and behind the end-of-turn token.
        closed: Whether the template puts an end-of-turn token.
        learned: Whether it is learned, or only stands there.
    """

    start: int
    end: int
    closed: bool
    learned: bool


class ChatTemplate:
    """A Jinja chat template.

    Args:
        source: The template.
        special_texts: Texts of bos_token, eos_token and so on, which the template may name.
        turn_ends: Texts of special tokens; the one that follows an answer ends the turn.
    """

    def __init__(self, source: str, special_texts: dict[str, str], turn_ends: list[str]) -> None:
        environment = BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = _tojson
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template is not Jinja (line {error.lineno}: {error.message})") from None
        self._special_texts = special_texts
        longest_first = sorted(turn_ends, key=len, reverse=True)
        self._turn_end = re.compile(r"\s*(" + "|".join(map(re.escape, longest_first)) + ")") if turn_ends else None

    def render(self, messages: Turns, add_generation_prompt: bool = False, tools: Tools = None) -> str:
        """The text of a conversation; ValueError where the template refuses it."""
        turns = [_as_read(turn) for turn in messages]
        variables = {"messages": turns, "tools": tools, "documents": None, **self._special_texts}
        try:
            return self._template.render(add_generation_prompt=add_generation_prompt, **variables)
        except Exception as error:  # foreign code may fail in any way
            raise ValueError(f"the chat template refuses the conversation ({error})") from None

    def spans(self, messages: Turns, tools: Tools = None) -> tuple[str, list[Span]]:
        """The text up to the end of the last answer, and where the assistant speaks in it.

        Args:
            messages: A conversation whose last turn is the assistant's. An answer with ``learned`` false is not
                learned, and may be rewritten.
            tools: What the assistant may call, as JSON schemas.

        Raises:
            ValueError: The template refuses the conversation, or rewrites an answer that is learned; names the turn.
        """
        text = self.render(messages, tools=tools)
        _check_read(messages, tools, text)
        prompt = self._generation_prompt(messages, tools)
        spans = self._whole_answers(text, messages, tools, prompt) or self._single_answers(
            text, messages, tools, prompt
        )
        return text[: spans[-1].end], spans

    def end_of_turn(self) -> str | None:
        """The special token with which the template ends an answer, and a model its turn; None where it puts none."""
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            behind = self._frame(messages, {2}, None)[1]
        except ValueError:  # a template may want turns of its own, as a first one of the system
            return None
        end = self._turn_end.match(behind) if self._turn_end else None
        return end[1] if end else None

    def _frame(self, messages: Turns, numbers: set[int], tools: Tools) -> list[str]:
        """What the template writes before, between and behind the answers of some turns, counted from 1."""
        words = json.dumps([messages, tools], ensure_ascii=False, default=str)
        mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in words)  # of private use
        marked = {"role": "assistant", "content": mark}
        turns = [marked if number in numbers else turn for number, turn in enumerate(messages, start=1)]
        frame = self.render(turns, tools=tools).split(mark)
        if len(frame) != len(numbers) + 1:
            raise ValueError(f"turn {min(numbers)}: the chat template drops or moves an answer; expected each in order")
        return frame

    def _whole_answers(self, text: str, messages: Turns, tools: Tools, prompt: str) -> list[Span] | None:
        """All answers by one rendering with marks; None unless each stands in the text as it is, or trimmed."""
        answers = [turn for turn in messages if turn["role"] == "assistant"]
        if any(turn.keys() - {*OURS, "role", "content"} for turn in answers):
            return None
        frame = self._frame(messages, {n for n, turn in enumerate(messages, 1) if turn["role"] == "assistant"}, tools)
        if not text.startswith(frame[0]):
            return None
        spans: list[Span] = []
        position = 0
        for turn, before, behind in zip(answers, frame, frame[1:], strict=False):
            start = position + _generation_start(before, prompt)
            position += len(before)
            written = _as_written(turn["content"], text, position, behind)
            if written is None:
                return None
            position += len(written)
            spans.append(self._span(text, start, position, turn))
        return spans

    def _single_answers(self, text: str, messages: Turns, tools: Tools, prompt: str) -> list[Span]:
        """Every answer by a rendering of its own, for what the template takes apart: thoughts, calls of tools."""
        spans: list[Span] = []
        for number, turn in enumerate(messages, start=1):
            if turn["role"] != "assistant":
                continue
            before, behind = self._frame(messages, {number}, tools)
            begin = spans[-1].end if spans else 0
            start = begin + _generation_start(before[begin:], prompt)
            words = len(before) if text.startswith(before) else len(commonprefix([text, before]))
            stop = len(text) - (len(behind) if text.endswith(behind) else len(commonprefix([text[::-1], behind[::-1]])))
            prompted = max(begin, start - len(prompt))
            if not prompted <= words <= stop:
                raise ValueError(f"turn {number}: the chat template drops or moves an answer; expected each in order")
            if turn.get("learned", True) and (missing := _missing(turn, text[prompted:stop])):
                raise ValueError(
                    f"turn {number}: the chat template rewrites an answer, it leaves out or changes {missing}; expected"
                    " it whole or trimmed, since what the template writes is learned (an earlier turn may lose its "
                    "thought: make the answers rows of their own)"
                )
            # what asks for an answer may end by an empty thought, in whose place a thought of this answer stands
            spans.append(self._span(text, min(start, words), stop, turn))
            self._check_told(messages, number, tools, spans[-1].end)
        return spans

    def _span(self, text: str, start: int, stop: int, turn: dict[str, Any]) -> Span:
        end = self._turn_end.match(text, stop) if self._turn_end else None
        return Span(start, end.end() if end else stop, end is not None, turn.get("learned", True))

    def _check_told(self, messages: Turns, number: int, tools: Tools, end: int) -> None:
        """ValueError where the template writes a tool's answer inside the turn that calls it, as some do."""
        if number == len(messages) or messages[number]["role"] != "tool":
            return
        mark = "\ue000"
        told = [*messages[:number], {**messages[number], "content": mark}, *messages[number + 1 :]]
        if self.render(told, tools=tools).find(mark) < end:
            raise ValueError(f"turn {number + 1}: the chat template writes it into the turn before; not supported")

    def _generation_prompt(self, messages: Turns, tools: Tools) -> str:
        """What the template adds to ask for an answer; empty where it adds nothing."""
        first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
        if first == 0:
            return ""
        plain = self.render(messages[:first], tools=tools)
        prompted = self.render(messages[:first], add_generation_prompt=True, tools=tools)
        return prompted[len(plain) :] if prompted.startswith(plain) else ""


def _check_read(messages: Turns, tools: Tools, text: str) -> None:
    """ValueError for tools and names of speakers that a template leaves out; answers are looked at by themselves."""
    names = {"tools": [tool.get("function", tool).get("name") for tool in tools or ()]}
    names |= {f"turn {n}: name": [turn.get("name")] for n, turn in enumerate(messages, 1) if turn["role"] != "tool"}
    for key, values in names.items():
        if missing := [name for name in values if name and str(name) not in text]:
            raise ValueError(f"{key}: the chat template leaves out {missing[0]!r}; expected rows without it")


def _as_read(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn as templates read it: what is not for them left out, a thought under each of its names."""
    kept = {key: value for key, value in turn.items() if key not in OURS}
    thought = next((kept[name] for name in REASONING if kept.get(name)), None)
    return kept if thought is None else {**dict.fromkeys(REASONING, thought), **kept}


def _generation_start(before: str, generation_prompt: str) -> int:
    """Where, in what the template writes before an answer, the model goes on by itself."""
    if generation_prompt and generation_prompt in before:
        return before.rindex(generation_prompt) + len(generation_prompt)
    return len(before.rstrip(" "))  # where nothing asks for an answer, the model has to say the space too


def _as_written(answer: str, text: str, position: int, behind: str) -> str | None:
    """The answer as it stands in the text, whole or trimmed."""
    forms = (answer, answer.strip(), answer.lstrip(), answer.rstrip())
    return next((words for words in forms if text.startswith(words + behind, position)), None)


def _missing(turn: dict[str, Any], text: str) -> str:
    """Names the piece of an answer that does not stand in the text; empty where all do, those of ``content`` in order.

    A template may move white space at the ends of a text, and where it is divided by tags such as ``</think>``.
    """
    position = 0
    for piece in filter(None, (piece.strip() for piece in TAG.split(turn["content"] or ""))):
        position = text.find(piece, position)
        if position < 0:
            return f"{piece!r:.60}"
        position += len(piece)
    for key, value in turn.items():
        if key not in (*OURS, "role", "content"):
            for leaf in _leaves(value):
                if leaf.strip() not in text and json.dumps(leaf, ensure_ascii=False)[1:-1] not in text:
                    return key
    return ""


def _leaves(value: Any) -> Iterator[str]:
    """The texts in a turn's field, such as the names and arguments of its tool calls."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        # ids and the word "function" are not said by every template
        for key, entry in value.items():
            yield from () if key in ("id", "type") else _leaves(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _leaves(entry)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # as transformers (apply_chat_template): jinja2's own filter escapes <, >, & and ' for HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
