"""Which tokens of a sequence an encoder reads."""
