"""The place of training state under each ZeRO stage."""

import enum


class Sharding(enum.Enum):
    """Where the full-precision weights and the moments live."""

    REPLICATED = enum.auto()
    """In the parameters themselves, whole on every rank."""
    FLAT_GROUPS = enum.auto()
    """In one flat tensor a parameter group, of which each rank holds a contiguous part."""
    PER_PARAMETER = enum.auto()
    """Each parameter is cut in as many equal parts as there are ranks."""
