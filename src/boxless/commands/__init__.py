"""One file, one function, one command."""
