"""Scores one can trust: what a model makes of a task, the same whatever computes it, and how sure.

    examples ── requests ──> Scorer (batches, cache) ──> answers ──> metrics ──> intervals

`request.py` is what a model is asked, `scorer.py` asks it under any layout, `answers.py` keeps what
it said, `metric.py` counts, `interval.py` says how sure, `evaluation.py` goes through a task, and
`contamination.py` says which rows a run has read.
"""
