"""The format of step checkpoints: one file or a folder of shards, written whole, counted by its manifest of hashes."""
