"""`make bench`: speed against peers and against our own other ways, as ratios side by side."""
