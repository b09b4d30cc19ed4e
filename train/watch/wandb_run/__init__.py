"""A run at Weights & Biases: records become rows, each step once, whatever dies meanwhile."""
