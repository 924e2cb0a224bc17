"""What is trained: all weights, or low-rank adapters beside them."""

from lit_consistency.methods.base import Method
from lit_consistency.methods.full import Full
from lit_consistency.methods.lora import LoRA, LoRAGPT

__all__ = ["Full", "LoRA", "LoRAGPT", "Method"]
