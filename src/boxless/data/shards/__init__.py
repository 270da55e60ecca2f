"""Images packed into tar shards."""
