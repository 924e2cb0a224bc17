"""How sure numbers are that stand on disk: intervals, fronts, readings at matched learning, effects, verdicts, rates.

Imports no torch.
"""
