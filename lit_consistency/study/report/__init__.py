"""What a reader sees of many runs: pictures."""
