"""Training: configuration, data, loop, checkpoints and watching."""
