"""What a detector is worth: average precision against labels."""
