"""lm-evaluation-harness both ways: its tasks on our models, our tasks as files of its own."""
