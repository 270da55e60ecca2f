"""Labels of every format, as one type."""
