"""Affine maps between pixel frames, boxes, and views that remember where they came from.

One frame everywhere: continuous pixels. An H x W image covers [0, W] x [0, H], the centre of its first pixel
is (0.5, 0.5), boxes are (x1, y1, x2, y2) and never inclusive.
"""
