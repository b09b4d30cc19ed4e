"""From stored samples to packed batches of static shape."""
