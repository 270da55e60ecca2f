"""Detectors whose label-free part, the trunk, is what pretraining trains: one definition for both."""
