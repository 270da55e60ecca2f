"""Tasks: pretraining, fine-tuning, evaluation, probes and comparisons."""
