"""boxless: pretrain object detectors on images without labels, and see what that bought."""

__version__ = "0.1.0"
