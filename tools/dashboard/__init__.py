"""Runs in a browser: `metrics.jsonl` as it grows, thinned, shown by trackio.

    metrics.jsonl, attempts.jsonl, hardware ── following ── thinning ──(a pipe)── shown: trackio

trackio wants versions that the rest cannot have, and so an environment of its own,
`.venv/dashboard`, in which `shown` alone runs.
"""
