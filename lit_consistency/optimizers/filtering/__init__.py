"""MoFO's filter: thresholds, blocks, and the passes that move what is selected."""
