"""Keeping a run going: start its ranks, watch them, judge what went wrong, decide what to do."""
