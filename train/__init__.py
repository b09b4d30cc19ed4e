"""How it is trained: configuration, data, loop, checkpoints and watching."""
