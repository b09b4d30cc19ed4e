"""Loading: from shards to batches, beside streaming."""
