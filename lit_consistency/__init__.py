"""Pretrain and finetune LitGPT models with any optimizer, and see what was learned and what was forgotten."""

__version__ = "0.9.0"
