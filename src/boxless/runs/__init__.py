"""Run folders, their files and weights."""
