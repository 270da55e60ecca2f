"""Figures drawn from arrays: matplotlib alone."""
