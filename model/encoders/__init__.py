"""Bidirectional encoders, one module a modality."""
