"""From a matrix to its polar factor: Newton-Schulz iterations, and the choice of their form and precision."""
