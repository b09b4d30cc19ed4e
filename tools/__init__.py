"""Command-line tools around training; each runs as `python -m tools.NAME`."""
