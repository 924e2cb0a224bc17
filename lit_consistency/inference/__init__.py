"""What a model answers: log-likelihoods of candidates, generated text, divergence from another model. Knows no task."""
