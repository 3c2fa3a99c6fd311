"""Stores the outputs of the frozen models on disk, so that training runs without the models."""
