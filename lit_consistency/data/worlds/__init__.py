"""Synthetic worlds: seeded generators of text, rows and questions whose optimum is known."""

from lit_consistency.data.worlds.adapters import WorldRows, WorldText
from lit_consistency.data.worlds.arithmetic import ModularArithmetic
from lit_consistency.data.worlds.base import Probe, World
from lit_consistency.data.worlds.biographies import Biographies
from lit_consistency.data.worlds.markov import MarkovChains

__all__ = [
    "Biographies",
    "MarkovChains",
    "ModularArithmetic",
    "Probe",
    "World",
    "WorldRows",
    "WorldText",
]
