"""A tokenizer's own chat template, rendered in a sandbox, and where in the text the assistant speaks.

Source of the format: https://huggingface.co/docs/transformers/chat_templating (Jinja with trimmed blocks; variables
messages, add_generation_prompt, bos_token, ...). A downloaded template is foreign code, so it runs in jinja2's
immutable sandbox. It gives up tools, documents and the date: templates that ask for today fall back to their fixed
date, since tokens on disk must not depend on the day.

How the assistant's text is found: the conversation is rendered twice, once with its words and once with marks instead
of them. What stands between two marks is the template's own, so every boundary is exact whatever the words are; a
template that rewrites the words (other than trimming them) is refused.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from lit_consistency.data.sources.conversations import Messages
from lit_consistency.data.tokens.bounded_template import BoundedEnvironment


class _Generation(jinja2.ext.Extension):
    """Reads `{% generation %}` blocks, with which some templates mark the assistant, as if unmarked."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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
        self._template = environment.from_string(source)
        self._special_texts = special_texts
        longest_first = sorted(turn_ends, key=len, reverse=True)
        self._turn_end = re.compile(r"\s*(" + "|".join(map(re.escape, longest_first)) + ")") if turn_ends else None

    def render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """The text of a conversation; ValueError where the template refuses it."""
        turns = [{"role": message["role"], "content": message["content"]} for message in messages]
        variables: dict[str, Any] = {"messages": turns, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(tools=None, documents=None, **variables, **self._special_texts)
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses the conversation ({error})") from None

    def spans(self, messages: Messages) -> tuple[str, list[tuple[int, int, bool]]]:
        """The text up to the end of the last answer, and where the assistant speaks in it.

        Args:
            messages: A conversation whose last turn is the assistant's.

        Returns:
            The text, and for every answer (start, end, closed) in characters. An answer starts where generation
            would, and ends behind its end-of-turn token; closed is False where the template puts no such token.

        Raises:
            ValueError: The template refuses the conversation, or rewrites an answer.
        """
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        text, frame = self.render(messages), self._frame(messages)
        if len(frame) != len(answers) + 1 or not text.startswith(frame[0]):
            raise ValueError("the chat template drops or moves an answer; expected each one once and in order")
        generation_prompt = self._generation_prompt(messages)
        spans, position = [], 0
        for answer, before, after in zip(answers, frame, frame[1:], strict=False):
            start = position + _generation_start(before, generation_prompt)
            position += len(before)
            position += len(_as_rendered(answer, text, position, after))
            end = self._turn_end.match(after) if self._turn_end else None
            spans.append((start, position + (end.end() if end else 0), end is not None))
        return text[: spans[-1][1]], spans

    def end_of_turn(self) -> str | None:
        """The special token with which the template ends an answer, and a model its turn; None where it puts none."""
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            behind = self._frame(messages)[-1]
        except ValueError:  # a template may want turns of its own, as a first one of the system
            return None
        end = self._turn_end.match(behind) if self._turn_end else None
        return end[1] if end else None

    def _frame(self, messages: Messages) -> list[str]:
        """What the template writes around the answers: before the first, between each two, behind the last."""
        words = "".join(message["content"] for message in messages)
        mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in words)  # of private use
        return self.render([{**m, "content": mark} if m["role"] == "assistant" else m for m in messages]).split(mark)

    def _generation_prompt(self, messages: Messages) -> str:
        """What the template adds to ask for an answer; empty where it adds nothing."""
        first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
        if first == 0:
            return ""
        prompted, plain = self.render(messages[:first], add_generation_prompt=True), self.render(messages[:first])
        return prompted[len(plain) :] if prompted.startswith(plain) else ""


def _generation_start(before: str, generation_prompt: str) -> int:
    """Where, in what the template writes before an answer, the model goes on by itself."""
    if generation_prompt and generation_prompt in before:
        return before.rindex(generation_prompt) + len(generation_prompt)
    return len(before.rstrip(" "))  # where nothing asks for an answer, the model has to say the space too


def _as_rendered(answer: str, text: str, position: int, after: str) -> str:
    """The answer as it stands in the text, whole or trimmed."""
    for words in (answer, answer.strip(), answer.lstrip(), answer.rstrip()):
        if text.startswith(words + after, position):
            return words
    raise ValueError(
        "the chat template rewrites an answer; expected it whole or trimmed, else its tokens cannot be told exactly"
    )


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
