"""Recipes: frozen dataclasses with every number of a run, shipped by name, changed by key."""
