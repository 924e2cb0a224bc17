"""What runs and evaluations leave on disk, written and read here alone. Imports no torch."""
