"""How a float32 value becomes a bfloat16 one without losing what is small: rounding up or down by chance.

A float32 number lies between two neighbours in bfloat16. Stochastic rounding takes the upper one with a probability
equal to the share of the way to it, so that its expectation is the number itself and many small steps add up, where
rounding to the nearest loses every step below half the distance of the neighbours. It needs no memory between steps.

The random bits are a function of seed, name of the parameter and step: nothing has to be saved, ranks that hold the
same parameter round alike, and a resumed run continues bit for bit. Given up: float16, whose distances below its
normal range are not those of float32's upper bits.

Source: Zamirai et al. 2020, Revisiting BFloat16 Training, arXiv 2010.06192, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

# elements rounded at a time: 4 MiB of random bits and float32 values each on a CPU, where they stay in the cache
ROUNDED_AT_ONCE = 2**18
ROUNDED_AT_ONCE_CUDA = 2**24
LOW_BITS = 16  # that float32 has and bfloat16 has not
FLOAT32_MAX = torch.finfo(torch.float32).max


def round_stochastically(target: Tensor, source: Tensor, generator: torch.Generator) -> None:
    r"""Round ``source`` to ``target``: up with the probability that makes the expectation exact.

    .. math::
        \text{target} \leftarrow (\text{bits(source)} + u) \land \text{ffff0000}_{16}, \quad
        u \text{ uniform in } \{0, \dots, 2^{16} - 1\}

    Args:
        target: bfloat16, overwritten.
        source: float32 of that shape, finite or not; only read. What bfloat16 holds exactly is kept exactly.
        generator: of the source's device; it moves on.

    Raises:
        ValueError: a dtype is another one.
    """
    if target.dtype != torch.bfloat16 or source.dtype != torch.float32:
        raise ValueError(f"stochastic rounding: expected float32 to bfloat16, got {source.dtype} to {target.dtype}")
    if not (target.is_contiguous() and source.is_contiguous()):
        rounded = torch.empty(target.shape, dtype=target.dtype, device=target.device)
        round_stochastically(rounded, source.contiguous(), generator)
        target.copy_(rounded)
        return
    at_once = ROUNDED_AT_ONCE if source.device.type == "cpu" else ROUNDED_AT_ONCE_CUDA
    for piece, values in zip(target.view(-1).split(at_once), source.view(-1).split(at_once), strict=True):
        bits = random_low_bits(values.numel(), generator).add_(values.view(torch.int32))
        rounded = bits.bitwise_and_(-(1 << LOW_BITS)).view(torch.float32)
        # the sum could turn a NaN into a number
        piece.copy_(torch.where(values.abs() <= FLOAT32_MAX, rounded, values))


def random_low_bits(numel: int, generator: torch.Generator) -> Tensor:
    """Independent uniform integers in [0, 2^16), int32 of shape (numel,)."""
    # four to a draw of 64 bits, which is the dearest part on a CPU
    words = torch.empty(-(-numel // 4), dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)[:numel].to(torch.int32).bitwise_and_((1 << LOW_BITS) - 1)


def seed_of(seed: int, name: str, step: int) -> int:
    """A seed in [0, 2^63) for one parameter and one step, the same on every machine, so that nothing needs saving."""
    # FNV-1a with 64 bits, http://www.isthe.com/chongo/tech/comp/fnv/
    digest = 0xCBF29CE484222325
    for byte in f"{seed}/{name}/{step}".encode():
        digest = ((digest ^ byte) * 0x100000001B3) % 2**64
    return digest >> 1
