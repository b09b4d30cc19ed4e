"""What was given and is not in a corpus: counted by reason, and named in a file beside it."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tools.corpus.words import counted

LEFT_OUT_NAME: Final = "left_out.jsonl"
"""A line for each file: its source, the reason, its name."""
_NAMED: Final = 3
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


def lines(sources: Mapping[str, LeftOut]) -> bytes:
    """The content of the file that names what is left out."""
    return "".join(
        json.dumps({"source": source, "reason": reason, "name": name}, ensure_ascii=False) + "\n"
        for source, left_out in sources.items()
        for reason, names in sorted(left_out.items())
        for name in names
    ).encode()


def told(manifest: Mapping[str, Any]) -> list[str]:
    """What was given and is not in the corpus, a line for each source that lacks something."""
    return [line for source in _described(manifest) if (line := _told(source))]


def _described(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    sources = manifest.get("sources")
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, dict):
            yield source


def _told(source: Mapping[str, Any]) -> str:
    files = source.get("left_out_files") or {}
    facts = [f"{counted(count, 'file')} ({reason})" for reason, count in files.items()]
    for key, name in (("skipped", "bad record"), ("duplicates_removed", "duplicate")):
        if source.get(key):
            facts.append(counted(source[key], name))
    if not facts:
        return ""
    where = f"; {LEFT_OUT_NAME} names them" if files else ""
    return f"left out of {source.get('name')}: {', '.join(facts)}{where}"


def faults(manifest: Mapping[str, Any], content: bytes | None, *, place: str) -> list[str]:
    """Where a manifest does not account for all that was given.

    Args:
        manifest: of the corpus; older ones count no records, and nothing is said of them.
        content: of the file that names what is left out; None if it is not there.
        place: what to call that file.
    """
    found: list[str] = []
    stated: Counter[tuple[str, str]] = Counter()
    for source in _described(manifest):
        if source.get("records") is None:
            return []
        name, records = source["name"], source["records"]
        ends = [source[key] for key in ("documents", "duplicates_removed", "skipped")]
        if records != sum(ends):
            documents, duplicates, bad = ends
            found.append(
                f"{place}: of {name} {records:,} records were read, but {documents:,} documents, "
                f"{duplicates:,} duplicates and {bad:,} bad ones are accounted for"
            )
        stated.update({(name, reason): n for reason, n in source["left_out_files"].items()})
    try:
        named = Counter(_named(content or b""))
    except (ValueError, KeyError, TypeError) as error:
        return [*found, f"{place} cannot be read ({error}); build the corpus again"]
    for source, reason in sorted({*stated, *named}):
        count, names = stated[source, reason], named[source, reason]
        if count != names:
            found.append(
                f"{place} names {names:,} files of {source} ({reason}), and the manifest counts "
                f"{count:,}"
            )
    return found


def _named(content: bytes) -> Iterator[tuple[str, str]]:
    for line in content.splitlines():
        row = json.loads(line)
        yield row["source"], row["reason"]
