"""Submitting runs to Slurm: what a job asks for, what is refused before, and what it finds."""
