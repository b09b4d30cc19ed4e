"""Kernels of our own for GPUs, in Triton; each computes what a torch function of `model` defines.

They are imported where they are first used, on a GPU: triton comes with torch's builds for CUDA
alone. Without a GPU, tests run them in Triton's interpreter.
"""
