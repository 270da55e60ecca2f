"""From files to batches: images, labels, views and the order in which they come."""
