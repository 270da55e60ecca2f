"""Evaluation of detectors and features: average precision, mIoU, probes."""
