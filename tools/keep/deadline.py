"""How long a section may take: learned from how long it took in this run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from train.watch.heartbeat import Section

SPARE_FACTOR: Final = 5.0
"""A section may take so many times as long as it ever took."""

ONCE_FACTOR: Final = 6.0
"""A section that is no part of every step may take so many times the limit of what is unknown."""

ENOUGH: Final = 3
"""Sections of a kind that must have ended before their times say anything."""

_OF_EVERY_STEP: Final = (Section.READ, Section.STEP)


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
        if section not in _OF_EVERY_STEP:
            return max(
                ONCE_FACTOR * self.unknown_seconds,
                SPARE_FACTOR * longest_seconds.get(section, 0.0),
            )
        if counts.get(section, 0) < ENOUGH:
            return self.unknown_seconds
        return max(self.least_seconds, SPARE_FACTOR * longest_seconds[section])
