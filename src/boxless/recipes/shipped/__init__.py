"""The shipped recipes: one module each, with a docstring for the reader and a constant `RECIPE`."""
