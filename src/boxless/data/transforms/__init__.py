"""Views of images: windows and colours."""
