"""Checkpoints that any layout writes and any other reads: tensors by logical name, no pickles."""
