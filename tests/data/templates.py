"""Chat templates of well-known families, written from the formats' descriptions, with a conversation in each."""

from __future__ import annotations

from typing import NamedTuple

from tests.data.helpers import assistant, system, user

CONVERSATION = [system("Be kind."), user("Hi"), assistant("Hello!"), user("Who?"), assistant("Me.")]
WITHOUT_SYSTEM = CONVERSATION[1:]


class Template(NamedTuple):
    """Jinja source, a conversation, its text up to the last answer's end, and what the assistant says in it."""

    source: str
    messages: list[dict[str, str]]
    text: str
    learned: list[str]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEMPLATES = {
    "chatml": Template(
        CHATML,
        CONVERSATION,
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>",
        ["Hello!<|im_end|>", "Me.<|im_end|>"],
    ),
    "llama3": Template(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        [user(" Hi "), assistant(" Hello! ")],
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>",
        ["Hello!<|eot_id|>"],
    ),
    "gemma": Template(
        "{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        WITHOUT_SYSTEM,
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\nMe.<end_of_turn>",
        ["Hello!<end_of_turn>", "Me.<end_of_turn>"],
    ),
    # asks for an answer by nothing, and leaves a space before it
    "mistral": Template(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
        WITHOUT_SYSTEM,
        "<s>[INST] Hi [/INST] Hello!</s>[INST] Who? [/INST] Me.</s>",
        [" Hello!</s>", " Me.</s>"],
    ),
    "phi-3": Template(
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        CONVERSATION,
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
        "<|user|>\nWho?<|end|>\n<|assistant|>\nMe.<|end|>",
        ["Hello!<|end|>", "Me.<|end|>"],
    ),
    # a line feed stands between the answer and its end
    "zephyr": Template(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '\n' + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        WITHOUT_SYSTEM,
        "<|user|>\nHi\n<|endoftext|>\n<|assistant|>\nHello!\n<|endoftext|>\n"
        "<|user|>\nWho?\n<|endoftext|>\n<|assistant|>\nMe.\n<|endoftext|>",
        ["Hello!\n<|endoftext|>", "Me.\n<|endoftext|>"],
    ),
    # rewrites the history: an empty thought stands before the last answer only; the model is to produce it
    "qwen3": Template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        WITHOUT_SYSTEM,
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nMe.<|im_end|>",
        ["Hello!<|im_end|>", "<think>\n\n</think>\n\nMe.<|im_end|>"],
    ),
    # says itself, as transformers allows, what the assistant generates
    "generation": Template(
        "{%- for m in messages %}{%- if m.role == 'assistant' %}<|assistant|>{% generation %}{{ m.content }}<|end|>"
        "{% endgeneration %}{%- else %}<|user|>{{ m.content }}<|end|>{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}<|assistant|>{%- endif %}",
        WITHOUT_SYSTEM,
        "<|user|>Hi<|end|><|assistant|>Hello!<|end|><|user|>Who?<|end|><|assistant|>Me.<|end|>",
        ["Hello!<|end|>", "Me.<|end|>"],
    ),
    # no end-of-turn token anywhere: EOS is put behind every answer
    "plain": Template(
        "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else 'A: ' }}{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}",
        WITHOUT_SYSTEM,
        "Q: Hi\nA: Hello!<|endoftext|>\nQ: Who?\nA: Me.<|endoftext|>",
        ["Hello!<|endoftext|>", "Me.<|endoftext|>"],
    ),
}
