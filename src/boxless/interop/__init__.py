"""Weights to and from other libraries: their names, strides and colours, one file per library, both ways.

Inside, every tensor has torchvision's name, which is that of a trunk or of a detector around it; `layouts` finds out
whose names a file has.
"""
