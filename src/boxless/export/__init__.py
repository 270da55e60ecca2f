"""Runs in other libraries' formats."""
