"""A model on tasks: planned, measured cell by cell, written down, compared."""
