"""The only loop, and what it needs: optimisers, checkpoints, the journal, the health report. Knows nothing of boxes."""
