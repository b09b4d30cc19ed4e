"""Turns stored documents into packed batches of static shape.

The way of the data, each step with the type that it gives:

    corpus     Corpus           a directory or bucket: splits of shards, lengths, tokenizer
    order      GlobalOrder      documents shuffled by (seed, source, epoch), equal on every rank
    pack       PackedSequences  documents, or parts of them, that share a sequence
    sequences  PlannedSequence  number and parts of each sequence of a source (`data.pack`)
    mixture    Mixture          how many sequences each source gives to a step
    plan       StepPlan         the entries of a step's global batch, in order
    feed       Feed             this rank's entries, read ahead as samples and collated in a thread
    collate    Batch            tokens, labels, scored slots and packed spans of a microbatch

All before `feed` is arithmetic on recorded lengths: a pure function of configuration and step.
"""
