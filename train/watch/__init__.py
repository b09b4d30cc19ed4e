"""Watching a run: records, progress, report, W&B."""
