"""How CUDA's allocator is set up, which must be said before torch is imported."""

from collections.abc import MutableMapping

SETTINGS = "PYTORCH_ALLOC_CONF"
FORMER_SETTINGS = "PYTORCH_CUDA_ALLOC_CONF"
"""The name before torch 2.9, which later versions still read."""


def let_segments_expand(environment: MutableMapping[str, str]) -> None:
    """Asks for segments that grow: memory freed in pieces can then be had as one again.

    Spans give every microbatch other shapes, and with segments of fixed size what is freed between
    them is lost to the larger ones. A setting of the user's stands, under either name. Without CUDA
    nothing reads it.

    Args:
        environment: of this process; torch reads it when it is imported or first used.
    """
    if SETTINGS not in environment and FORMER_SETTINGS not in environment:
        environment[SETTINGS] = "expandable_segments:True"
