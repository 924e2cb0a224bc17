from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litgpt.data import SFTDataset
from litgpt.prompts import ChatML, Llama3, PromptStyle, prompt_styles

from lit_consistency.data.sources.conversations import conversation_of
from lit_consistency.data.sources.rows import Conversation
from lit_consistency.data.tokens.prompts import SINGLE_TURN, PromptEncoder
from lit_consistency.data.tokens.tokenizer import Tokenizer
from tests.data.helpers import assistant, learned, system, text_of, user
from tests.data.templates import CONVERSATION, WITHOUT_SYSTEM
from tests.data.tokens.families import llama3_like

EOS = "<|endoftext|>"

ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Input:\n2, 2\n\n### Response:\n"
)

# style -> (row, text, learned)
GOLDEN: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "default": ({"messages": CONVERSATION}, f"Be kind.\n\nHiHello!{EOS}Who?Me.{EOS}", [f"Hello!{EOS}", f"Me.{EOS}"]),
    "alpaca": ({"instruction": "Add.", "input": "2, 2", "output": "4"}, f"{ALPACA}4{EOS}", [f"4{EOS}"]),
    "qwen2.5": (
        {"messages": CONVERSATION},
        f"<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!{EOS}"
        f"\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.{EOS}",
        [f"Hello!{EOS}", f"Me.{EOS}"],
    ),
    "qwen3": (
        {"question": "Hi", "answer": "Hello!"},
        f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!{EOS}",
        [f"Hello!{EOS}"],
    ),
    "llama3": (
        {"messages": CONVERSATION},
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        f"Hello!{EOS}<|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
        f"<|start_header_id|>assistant<|end_header_id|>\n\nMe.{EOS}",
        [f"Hello!{EOS}", f"Me.{EOS}"],
    ),
    "phi-3": (
        {"prompt": "Hi", "completion": "Hello!"},
        "<|system|>\nYou are a helpful assistant.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n" + f"Hello!{EOS}",
        [f"Hello!{EOS}"],
    ),
    "gemma": (
        {"messages": CONVERSATION},
        "<start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\n" + f"Hello!{EOS}"
        "<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n" + f"Me.{EOS}",
        [f"Hello!{EOS}", f"Me.{EOS}"],
    ),
    "falcon": ({"prompt": "Hi", "completion": " Hello!"}, f"Hi\nAnswer: Hello!{EOS}", [f" Hello!{EOS}"]),
}


@pytest.mark.parametrize("style", GOLDEN)
def test_answers_and_their_eos_are_learned_and_nothing_else(style: str, tokenizer: Tokenizer) -> None:
    row, text, answers = GOLDEN[style]
    example = PromptEncoder(tokenizer, style).encode(conversation_of(row, "f:1"))
    assert text_of(tokenizer, example.tokens) == text
    assert learned(tokenizer, example) == answers


@pytest.mark.parametrize("style", ["default", *sorted(prompt_styles)])
def test_every_style_of_litgpt_gives_litgpts_own_tokens_and_mask(style: str, tokenizer: Tokenizer) -> None:
    row = {"instruction": "the question", "output": "the answer"}
    theirs = SFTDataset(
        [row], tokenizer, style if style != "default" else PromptStyle.from_config(NO_STYLE), mask_prompt=True
    )
    ours = PromptEncoder(tokenizer, style).encode(conversation_of(row, "f:1"))
    assert ours.tokens.tolist() == theirs[0]["input_ids"].tolist()
    assert ours.supervised.tolist() == (theirs[0]["labels"] != -100).tolist()


class NO_STYLE:
    name = "pythia-14m"


@pytest.mark.parametrize("style", ["llama3", "chat_template"])
def test_bos_that_the_style_or_the_template_writes_stands_once(style: str, tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<|eot_id|>{% endfor %}"
    tokenizer = Tokenizer(llama3_like(tmp_path, chat_template=template))
    tokens = PromptEncoder(tokenizer, style).encode(Conversation(WITHOUT_SYSTEM, "f:1")).tokens.tolist()
    assert (tokens.count(tokenizer.bos_id), tokens[0]) == (1, tokenizer.bos_id)
    plain = PromptEncoder(tokenizer).encode(Conversation(WITHOUT_SYSTEM, "f:1")).tokens.tolist()
    assert (plain.count(tokenizer.bos_id), plain[0]) == (1, tokenizer.bos_id)


def test_an_answer_that_ends_by_eos_is_given_no_second_one_where_its_text_is_the_token(tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, parse_special_tokens=True)
    example = encoder.encode(Conversation([user("Hi"), assistant(f"Hello!{EOS}")], "f:1"))
    assert learned(tokenizer, example) == [f"Hello!{EOS}"]
    assert example.tokens.tolist().count(tokenizer.eos_id) == 1


def test_a_boundary_inside_a_word_is_exact(tokenizer: Tokenizer) -> None:
    example = PromptEncoder(tokenizer).encode(Conversation([user("the ans"), assistant("wer")], "f:1"))
    assert learned(tokenizer, example) == [f"wer{EOS}"]
    assert len(tokenizer.encode("the answer")) < len(example.tokens) - 1


def test_an_empty_prompt_is_allowed(tokenizer: Tokenizer) -> None:
    example = PromptEncoder(tokenizer).encode(Conversation([user(""), assistant("the day")], "f:1"))
    assert text_of(tokenizer, example.tokens) == f"the day{EOS}"


def test_turns_behind_the_last_answer_are_left_out(tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer)
    trailing = Conversation([*WITHOUT_SYSTEM, user("And?")], "f:1")
    assert np.array_equal(encoder.encode(trailing).tokens, encoder.encode(Conversation(WITHOUT_SYSTEM, "f:1")).tokens)


def test_turns_of_one_speaker_are_joined(tokenizer: Tokenizer) -> None:
    row = Conversation([user("a"), user("b"), assistant("c"), assistant("d")], "f:1")
    example = PromptEncoder(tokenizer, "falcon").encode(row)
    assert text_of(tokenizer, example.tokens) == f"a\n\nb\nAnswer:c\n\nd{EOS}"


@pytest.mark.parametrize("style", SINGLE_TURN)
def test_styles_of_one_turn_refuse_a_second(style: str, tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, style)
    encoder.encode(Conversation(WITHOUT_SYSTEM[:2], "f:1"))
    with pytest.raises(ValueError, match=f"f:9: prompt_style = '{style}': a style of one turn"):
        encoder.encode(Conversation(WITHOUT_SYSTEM, "f:9"))


@pytest.mark.parametrize("style", sorted(set(prompt_styles) - set(SINGLE_TURN)))
def test_other_styles_say_nothing_of_their_own(style: str) -> None:
    """What makes a repeated prompt sound: it is made of marks around the words, not of sentences."""
    built = prompt_styles[style]()
    if not isinstance(built, ChatML | Llama3):
        assert len(built.apply("")) <= len("<|im_start|>user<|im_sep|><|im_end|><|im_start|>assistant<|im_sep|>")


def test_a_system_turn_is_never_lost(tokenizer: Tokenizer) -> None:
    for style in ["default", *prompt_styles]:
        example = PromptEncoder(tokenizer, style).encode(
            Conversation([system("Be kind."), user("Hi"), assistant("x")], "f:1")
        )
        assert "Be kind." in text_of(tokenizer, example.tokens), style


def test_an_input_is_never_lost(tokenizer: Tokenizer) -> None:
    messages = conversation_of({"instruction": "Add.", "input": "2, 2", "output": "4"}, "f:1").messages
    for style in ["default", *prompt_styles]:
        assert "2, 2" in text_of(
            tokenizer, PromptEncoder(tokenizer, style).encode(Conversation(messages, "f:1")).tokens
        ), style


def test_a_prompt_that_a_row_leaves_out_is_refused_where_all_is_learned(tokenizer: Tokenizer) -> None:
    row = Conversation([{**user("Hi"), "learned": False}, assistant("x")], "f:1")
    assert learned(tokenizer, PromptEncoder(tokenizer).encode(row)) == [f"x{EOS}"]
    with pytest.raises(ValueError, match="f:1: .*turn 1: a turn of role 'user' that is not to be learned"):
        PromptEncoder(tokenizer, loss_on="all").encode(row)


def test_an_unknown_style_names_close_ones(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="prompt_style = 'alpacca': expected one of alpaca"):
        PromptEncoder(tokenizer, "alpacca")


def test_the_parameters_are_those_of_the_house() -> None:
    names = ["tokenizer", "prompt_style", "loss_on", "parse_special_tokens"]
    assert list(inspect.signature(PromptEncoder).parameters) == names


def test_a_folder_of_the_model_is_enough(tokenizer_folder: Path) -> None:
    example = PromptEncoder(Tokenizer(tokenizer_folder)).encode(Conversation(WITHOUT_SYSTEM, "f:1"))
    assert example.tokens.dtype == np.int32
    assert example.supervised.dtype == np.bool_
