"""Drawn scenes: the data that needs no download."""
