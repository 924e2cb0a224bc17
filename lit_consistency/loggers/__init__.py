"""Where numbers go during a run: TensorBoard and metrics.jsonl."""
