"""Conversations as tokens with a mask: which tokens are learned.

The loss is on the completion: every answer of the assistant and its end-of-turn token, nothing else. Two ways:

* A prompt style of LitGPT. Prompt and answer are encoded apart, as LitGPT trains and generates, so the boundary is
  exact: the prompt's tokens are those of `litgpt generate`. Each answer ends with EOS. In a conversation of several
  turns the style is applied to every user turn behind the history; styles that open with a text said once (Alpaca's
  "Below is an instruction ...") are refused there. A system turn goes where the style has a place for it, else before
  the first user turn.
* `chat_template`, the tokenizer's own. The whole text is encoded at once, as at inference, and a token is learned if
  any of its characters is the assistant's. The end-of-turn token is the special token behind the answer; EOS is added
  where there is none.

The text of a special token inside the words of a conversation is text, unlike in LitGPT and transformers
(``data_text.py``); an option lets it be the token.
"""

from __future__ import annotations

from difflib import get_close_matches
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
from litgpt.prompts import ChatML, Default, Llama3, prompt_styles

from lit_consistency.data.sources.conversations import Messages
from lit_consistency.data.sources.rows import Conversation
from lit_consistency.data.tokens.chat_template import OURS, ChatTemplate, Tools
from lit_consistency.data.tokens.data_text import DataText
from lit_consistency.data.tokens.tokenizer import Tokenizer

LossOn = Literal["completion", "all"]

STYLES = ("default", "chat_template", *sorted(prompt_styles))

# styles of LitGPT whose prompt opens with a text of its own, said once: a second turn has no defined form
SINGLE_TURN = (
    "alpaca",
    "flan",
    "freewilly2",
    "llama2",
    "llama2-function-calling",
    "longform",
    "phi-3",
    "phi-4-mini-reasoning",
    "phi-4-reasoning",
    "stablelm-alpha",
    "tinyllama",
)


# a thought inside an answer is marked by tags that templates read; where they are special tokens, they stay tokens
THOUGHT = ("<think>", "</think>", "[THINK]", "[/THINK]")


class Example(NamedTuple):
    """A tokenized conversation.

    Attributes:
        tokens: (T,) int32.
        supervised: (T,) bool, true where a token is learned.
        special_text: Whether its words hold the text of a special token, which was encoded as text.
    """

    tokens: np.ndarray
    supervised: np.ndarray
    special_text: bool = False


def check_style(name: str) -> None:
    """ValueError with close matches unless the name is one of `STYLES`."""
    if name not in STYLES:
        close = get_close_matches(name, STYLES) or STYLES
        raise ValueError(f"prompt_style = {name!r}: expected one of {', '.join(close)}")


class PromptEncoder:
    """Turns rows into tokens and masks.

    Args:
        tokenizer: The tokenizer of the model.
        prompt_style: `default` (the bare text), a style of LitGPT by name, or `chat_template`.
        loss_on: `completion`, or `all` for the prompt too.
        parse_special_tokens: Whether the text of a special token inside the words of a row is the token.

    Raises:
        ValueError: The style is unknown, or the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_style: str = "default",
        loss_on: LossOn = "completion",
        parse_special_tokens: bool = False,
    ) -> None:
        check_style(prompt_style)
        self.tokenizer = tokenizer
        self.prompt_style = prompt_style
        self.loss_on = loss_on
        self.data_text = DataText(tokenizer, parse_special_tokens)
        self._template = chat_template(tokenizer) if prompt_style == "chat_template" else None
        self._style = prompt_styles[prompt_style]() if prompt_style in prompt_styles else Default()

    def encode(self, row: Conversation) -> Example:
        """Tokens and mask of a row, up to the end of its last answer.

        Raises:
            ValueError: The style has no form for the conversation; names where the row stands.
        """
        last = max(i for i, message in enumerate(row.messages) if message["role"] == "assistant")
        said = [row.messages[: last + 1], row.tools]
        try:
            if self.loss_on == "all":
                _check_prompt_is_learned(row.messages)
            hidden = self.data_text.hide(said, but=THOUGHT if self._template else ())
            if row.plain:
                tokens, supervised = self._plain(hidden[0][0]["content"])
            elif self._template:
                tokens, supervised = self._from_template(*hidden)
            else:
                tokens, supervised = self._from_style(*hidden)
        except ValueError as error:
            raise ValueError(f"{row.place}: prompt_style = {self.prompt_style!r}: {error}") from None
        return Example(np.asarray(tokens, np.int32), np.asarray(supervised, bool), hidden is not said)

    def _plain(self, text: str) -> tuple[list[int], list[bool]]:
        """A text in no format, as a document of pretraining."""
        tokens = [*self.data_text.encode_text(text), self.tokenizer.eos_id]
        return tokens, [True] * len(tokens)

    def _from_style(self, messages: Messages, tools: Tools) -> tuple[list[int], list[bool]]:
        _check_words_alone(messages, tools)
        tokens: list[int] = []
        supervised: list[bool] = []
        for number, (prompt, answer, learned) in enumerate(self._turns(messages)):
            # BOS is a matter of the text's beginning
            prompt_ids = self.data_text.encode_text(prompt, bos=None if number == 0 else False)
            answer_ids = self.data_text.encode_text(answer, bos=False, eos=True)
            tokens += prompt_ids + answer_ids
            supervised += [self.loss_on == "all"] * len(prompt_ids) + [learned] * len(answer_ids)
        return tokens, supervised

    def _turns(self, messages: Messages) -> list[tuple[str, str, bool]]:
        """Prompt in its style and answer as texts, and whether the answer is learned."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        turns: list[tuple[str, str, bool]] = []
        question: Messages = []
        for role, group in groupby(messages, key=lambda message: message["role"]):
            spoken = list(group)
            if role == "user":
                question = spoken
            elif role == "assistant":
                prompt = self._first_prompt(question, system) if not turns else self._next_prompt(_joined(question))
                learned = {message.get("learned", True) for message in spoken}
                if len(learned) > 1:
                    raise ValueError("answers in a row, some learned and some not; expected a question between them")
                turns.append((prompt, _joined(spoken), learned.pop()))
        return turns

    def _first_prompt(self, question: Messages, system: str) -> str:
        options = {}
        text = _joined(question)
        if len(question) == 1 and question[0].get("input") and self._reads("input"):
            text, options["input"] = question[0]["instruction"], question[0]["input"]
        if system and self._reads("sys_prompt"):
            options["sys_prompt"] = system
        elif system:
            text = f"{system}\n\n{text}"
        return self._style.apply(text, **options)

    def _next_prompt(self, text: str) -> str:
        if self.prompt_style in SINGLE_TURN:
            several = ", ".join(name for name in STYLES if name not in SINGLE_TURN)
            raise ValueError(f"a style of one turn, the conversation has several; expected one of {several}")
        if isinstance(self._style, ChatML):
            return "\n" + ChatML().apply(text)  # no second system turn
        prompt = self._style.apply(text)
        return prompt[prompt.index("<|start_header_id|>user") :] if isinstance(self._style, Llama3) else prompt

    def _reads(self, option: str) -> bool:
        """Whether the style has a place for `input` or `sys_prompt`."""
        return self._style.apply("x", **{option: "y"}) != self._style.apply("x")

    def _from_template(self, messages: Messages, tools: Tools) -> tuple[list[int], list[bool]]:
        assert self._template is not None
        text, spans = self._template.spans(messages, tools)
        tokens, extents = self.data_text.encode(text)
        starts, ends = extents.T
        supervised = np.full(len(tokens), self.loss_on == "all")
        unclosed: dict[int, bool] = {}
        for span in spans:
            # a lone space may have no extent in the offsets of byte-level tokenizers
            lone = (starts == ends) & (starts >= span.start) & (starts < span.end)
            inside = ((ends > span.start) & (starts < span.end)) | lone
            supervised[inside] = span.learned
            if not span.closed:
                unclosed[int(inside.nonzero()[0][-1]) + 1] = span.learned
        places = list(unclosed)
        return (
            np.insert(tokens, places, self.tokenizer.eos_id).tolist(),
            np.insert(supervised, places, list(unclosed.values())).tolist(),
        )


def _check_prompt_is_learned(messages: Messages) -> None:
    """ValueError for a turn of a prompt that its row says is not learned."""
    for number, message in enumerate(messages, start=1):
        if message["role"] != "assistant" and message.get("learned") is False:
            raise ValueError(
                f"turn {number}: a turn of role {message['role']!r} that is not to be learned, with loss_on = 'all'; "
                "expected loss_on: completion"
            )


def _check_words_alone(messages: Messages, tools: Tools) -> None:
    """ValueError, with its name, for what a conversation holds beside words, which no style has a place for."""
    expected = "expected prompt_style: chat_template, the styles have no place for it"
    if tools:
        raise ValueError(f"tools: {expected}")
    for number, message in enumerate(messages, start=1):
        if message["role"] not in ("system", "user", "assistant"):
            raise ValueError(f"turn {number}: role = {message['role']!r}: {expected}")
        if others := message.keys() - {"role", "content", *OURS}:
            raise ValueError(f"turn {number}: {min(others)}: {expected}")


def _joined(messages: Messages) -> str:
    return "\n\n".join(message["content"] for message in messages)


def end_of_turn(tokenizer: Tokenizer, template: ChatTemplate) -> tuple[int, ...]:
    """The token with which a model ends its turn in the template; none where an answer is ended by nothing."""
    text = template.end_of_turn()
    return () if text is None else (tokenizer.token_to_id(text),)


def chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    """The tokenizer's own template; ValueError where it has none, or tells no positions of its tokens."""
    if tokenizer.chat_template is None:
        raise ValueError(
            "prompt_style = 'chat_template': expected chat_template.jinja, or chat_template in tokenizer_config.json"
        )
    if tokenizer.backend != "huggingface":
        raise ValueError("prompt_style = 'chat_template': expected tokenizer.json; tokenizer.model tells no positions")
    ends = {*tokenizer.special_vocabulary, tokenizer.special_texts.get("eos_token", "")}
    return ChatTemplate(tokenizer.chat_template, tokenizer.special_texts, sorted(ends - {""}))
