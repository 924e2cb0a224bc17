"""What is trained: all weights, half of them, adapters beside them, or all with a pull to the start; the anchor."""

from lit_consistency.methods.anchor import KLAnchor
from lit_consistency.methods.base import Method
from lit_consistency.methods.full import Full
from lit_consistency.methods.half import HFT
from lit_consistency.methods.lora import LoRA, LoRAGPT
from lit_consistency.methods.pull import Pull

__all__ = ["HFT", "Full", "KLAnchor", "LoRA", "LoRAGPT", "Method", "Pull"]
