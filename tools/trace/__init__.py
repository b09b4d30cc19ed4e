"""What a profiler has seen of a step: `python -m tools.trace RUN`.

`timeline` knows what each stage did when, and what it would have done had nothing been waited for
but other stages.
"""
