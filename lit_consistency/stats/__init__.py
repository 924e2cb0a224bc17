"""Intervals, seeds, transfer between tasks: statistics of numbers that stand on disk. Imports no torch."""
