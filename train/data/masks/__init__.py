"""What objectives of an encoder alone keep from it, drawn where batches are made.

So what is masked is a function of seed, epoch and sample, on any number of ranks and after any
restart, the host knows how much is scored before anything is computed, and shapes need no
synchronisation.
"""
