"""Models on many devices: FSDP2 and HSDP, sharded tensors, the norm of sharded gradients."""

from lit_consistency.distributed.strategy import FSDP2Strategy

__all__ = ["FSDP2Strategy"]
