"""The training loop and its parts: optimizers, checkpoints, logging, health. It knows nothing of boxes."""
