"""What is trained, measured and compared."""
