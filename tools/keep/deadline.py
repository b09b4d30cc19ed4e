"""How long a section may take: learned from how long it took in this run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SPARE_FACTOR: Final = 5.0
"""A section may take so many times as long as it ever took."""

ENOUGH: Final = 3
"""Sections of a kind that must have ended before their times say anything."""


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Limits of all sections.

    Attributes:
        unknown_seconds: limit while a section's times are not known.
        least_seconds: no limit is shorter, so that a pause of the machine is no fault.
    """

    unknown_seconds: float
    least_seconds: float

    def of(
        self, section: str, *, longest_seconds: Mapping[str, float], counts: Mapping[str, int]
    ) -> float:
        """The limit of a section in seconds.

        Args:
            section: its name.
            longest_seconds: that any rank took so far, by section.
            counts: how many ended so far, by section.
        """
        if counts.get(section, 0) < ENOUGH:
            return self.unknown_seconds
        learned = SPARE_FACTOR * longest_seconds[section]
        return min(self.unknown_seconds, max(self.least_seconds, learned))
