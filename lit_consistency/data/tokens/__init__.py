"""From text to tokens: tokenizer, prompts and chat templates, tokens on disk, packing."""
