"""What a person sees of a run: records, progress, report, W&B."""
