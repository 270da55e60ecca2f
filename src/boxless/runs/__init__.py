"""What the commands do: runs in folders, each with one layout."""
