"""The paper's comparison in small: what is trained and asked, in which order, and what came out.

plan       what is compared, from a YAML; steps out of hours
jobs       every command that has to run, and when it has run
schedule   runs them side by side, and goes on where it was stopped
compute    operations of the runs, and losses at equal compute
results    scores of each arm, seed and protocol, and their differences
table      both, for people
"""
