"""Tests that run several ranks over gloo."""
