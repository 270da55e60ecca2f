"""Images, labels, views and batches, read from files."""
