"""From tokens to batches: the order of samples, the loader, replay."""
