"""Optimizers on many devices: which part of a tensor lies where, and how the ranks exchange what they need."""
