"""How it is spread: process groups, DeepSpeed ZeRO."""
