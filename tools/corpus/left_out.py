"""What was given and is not in a corpus: counted by reason, and named in a file beside it."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from tools.corpus.words import counted
from train.data.store.manifest import MANIFEST_NAME, Manifest, SourceRecord
from train.errors import DataError
from train.storage.record import parse

LEFT_OUT_NAME: Final = "left_out.json"
"""Lists each file: its source, the reason, its name."""
_NAMED: Final = 2
"""Files of a reason that messages name."""


class LeftOut(dict[str, list[str]]):
    """Names of files by the reason for which they are left out."""

    def add(self, reason: str, name: str) -> None:
        """Leave out a file; of a directory's files that directory."""
        names, name = self.setdefault(reason, []), shown(name)
        if not names or names[-1] != name:
            names.append(name)

    def keep(self, is_wanted: Callable[[str], Any]) -> None:
        """Forget the names that nobody asked for."""
        for reason, names in list(self.items()):
            self[reason] = [name for name in names if is_wanted(name.rstrip("/"))]
            if not self[reason]:
                del self[reason]

    def counts(self) -> dict[str, int]:
        """How many there are of each reason."""
        return {reason: len(names) for reason, names in sorted(self.items())}

    def __str__(self) -> str:
        return "; ".join(
            f"{reason}: {counted(len(names), 'file')}, {', '.join(names[:_NAMED])}"
            + ", …" * (len(names) > _NAMED)
            for reason, names in sorted(self.items())
        )


def shown(name: str) -> str:
    """A name in UTF-8, bytes that are not escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def listed(sources: Mapping[str, LeftOut]) -> bytes:
    """The content of the file that names what is left out; empty if nothing is."""
    rows = [
        json.dumps({"source": source, "reason": reason, "name": name}, ensure_ascii=False)
        for source, left_out in sources.items()
        for reason, names in sorted(left_out.items())
        for name in names
    ]
    return ("[\n" + ",\n".join(rows) + "\n]\n").encode() if rows else b""


def told(manifest: Manifest) -> list[str]:
    """What was given and is not in the corpus, a line for each source that lacks something."""
    return [line for source in manifest.sources if (line := _told(source))]


def _told(source: SourceRecord) -> str:
    files = source.left_out_files
    facts = [f"{counted(count, 'file')} ({reason})" for reason, count in files.items()]
    if source.skipped:
        facts.append(counted(source.skipped, "bad record"))
    if source.duplicates_removed:
        facts.append(counted(source.duplicates_removed, "duplicate"))
    if source.passed_over:
        facts.append(f"{counted(source.passed_over, 'record')} that --only does not ask for")
    if not facts:
        return ""
    # Corpora of older versions name no files. Duplicates were asked to go, and are counted alone.
    where = {
        f"{LEFT_OUT_NAME} names the files": files and source.records is not None,
        f"`skipped` in {MANIFEST_NAME} names the bad records": source.skipped,
    }
    names = "".join(f"; {told}" for told, is_so in where.items() if is_so)
    return f"left out of {source.name}: {', '.join(facts)}{names}"


def faults(manifest: Manifest, content: bytes | None, *, place: str) -> list[str]:
    """Where a manifest does not account for all that was given.

    Args:
        manifest: of the corpus; older ones count no records, and nothing is said of them.
        content: of the file that names what is left out; None if it is not there.
        place: what to call that file.
    """
    found: list[str] = []
    stated: Counter[tuple[str, str]] = Counter()
    for source in manifest.sources:
        if source.records is None:
            return []
        name, records = source.name, source.records
        documents, duplicates, bad = source.documents, source.duplicates_removed, source.skipped
        others = source.passed_over
        if records != documents + duplicates + bad + others:
            found.append(
                f"{place}: of {name} {records:,} records were read, but {documents:,} documents, "
                f"{duplicates:,} duplicates, {bad:,} bad ones and {others:,} passed over are "
                "accounted for"
            )
        stated.update({(name, reason): n for reason, n in source.left_out_files.items()})
    wanted = manifest.sha256.get(LEFT_OUT_NAME)
    if wanted is not None and hashlib.sha256(content or b"").hexdigest() != wanted:
        found.append(f"{place} is not the file that was built: copy or build the corpus again")
    try:
        rows = _rows(content, place)
    except DataError as error:
        return [*found, str(error)]
    named = Counter((row["source"], row["reason"]) for row in rows)
    for source, reason in sorted({*stated, *named}):
        count, names = stated[source, reason], named[source, reason]
        if count != names:
            found.append(
                f"{place} names {names:,} files of {source} ({reason}), and the manifest counts "
                f"{count:,}"
            )
    return found


class _Row(TypedDict):
    source: str
    reason: str


_ROWS: Final = TypeAdapter(list[_Row])


def _rows(content: bytes | None, place: str) -> list[_Row]:
    if content is None:
        return []
    return parse(_ROWS, content, name=place, error=DataError, remedy="build the corpus again")
