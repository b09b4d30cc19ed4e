"""What an encoder knows: a linear probe of its vectors, beside the same encoder as it was drawn."""
