"""What a view is: windows and colours."""
