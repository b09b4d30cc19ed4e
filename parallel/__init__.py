"""Parallelism: process groups, tensor and pipeline parallelism, DeepSpeed ZeRO."""
