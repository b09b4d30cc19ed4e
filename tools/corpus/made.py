"""Documents that a builder makes itself, rather than finds in files."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tools.corpus.left_out import LeftOut


@dataclass(frozen=True, kw_only=True)
class Made:
    """Documents, and what they were made of.

    Attributes:
        described: for the manifest: name and licences of each source, and what is known besides.
        licence_texts: copyright files by source.
        left_out: names of what gave no document, by reason; known when all records are made.
        records: as in a `.jsonl` source, with `id`, the whole name of the document, and `split`,
            where it belongs. Going through them raises DataError where they cannot be made.
    """

    described: list[dict[str, Any]]
    licence_texts: dict[str, str]
    left_out: LeftOut = field(default_factory=LeftOut)
    records: Iterable[Mapping[str, Any]] = ()

    @property
    def licences(self) -> list[str]:
        """Of all sources."""
        return sorted({licence for source in self.described for licence in source["licences"]})


class Maker(Protocol):
    """Makes documents."""

    @property
    def name(self) -> str:
        """What the source is called."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """First parts of the ids of its documents."""
        ...

    @property
    def identity(self) -> str:
        """Another one if other documents would be made."""
        ...

    def make(self, report: Callable[[str], None]) -> Made:
        """Make them; `report` is told what is being done.

        Raises:
            DataError: they cannot be made.
        """
        ...
