"""The parts of ``tests/benchmarks/gpu.py``: generators of rows, each run in a process of its own."""
