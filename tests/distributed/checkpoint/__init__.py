"""Checkpoints of several ranks."""
