"""The plan of a build: sources, and the parts that they are cut into.

A part is handled by one process and committed at once. How sources are cut depends on them and on
the size asked for alone, so that any number of processes builds the same corpus.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from tools.corpus import inputs, media
from tools.corpus.inputs import Listing
from tools.corpus.left_out import shown
from train.errors import DataError

Form = Literal["text", "jsonl", "csv", "parquet", "media", "made"]

SUFFIXES: Final[dict[str, Form]] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".json.gz": "jsonl",
    ".json.zst": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    **dict.fromkeys(media.SUFFIXES, "media"),
}
MOST_PARTS: Final = 256
"""About as many parts are made of large sources; validation shards come one to a part."""
LEAST_PART_BYTES: Final = 4 << 20
_FILE_BYTES: Final = 512
"""What opening a file costs, as bytes: folders of many small files are cut into parts too."""
_DESCRIPTION: Final = re.compile(r"(readme|licen[cs]e|notice|changelog)(?![^\W_])", re.IGNORECASE)
"""Files that tell of the tables beside them."""
_NAMED: Final = re.compile(r"^([^\W_][\w.-]*)=(.+)$", re.DOTALL)
"""Letters are those of any writing."""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Slice(_Stored):
    """A file, or a range of it.

    Attributes:
        path: to open it by.
        name: its path inside the source.
        form: how to read it.
        file_bytes: size of the whole file when it was planned.
        begin: first byte, or first row group of parquet.
        end: byte or row group after the last; None for all of the file.
        first_row: number of the first row, as messages and ids count them.
        caption: the file that holds a payload's text.
        num_bytes: what it weighs, for cutting parts and for progress.
    """

    path: str
    name: str
    form: Form
    file_bytes: int
    begin: int = 0
    end: int | None = None
    first_row: int = 1
    caption: str | None = None
    num_bytes: int


class Part(_Stored):
    """What one process does at a time: slices of one source.

    Attributes:
        source: number of the source.
        slices: in order.
    """

    source: int
    slices: list[Slice]

    @property
    def num_bytes(self) -> int:
        """Of input."""
        return sum(piece.num_bytes for piece in self.slices)


class Source(_Stored):
    """Where documents come from.

    Attributes:
        name: first part of the ids of its documents.
        path: as given.
        licences: SPDX identifiers.
        kind: forms of its files.
        files: how many are read, but for captions.
        bytes: of these.
        identity: hash of the name, the size and the stamp of every file that is read, captions
            too. Files that rows of a table name by their path are no part of it.
        left_out: names of files that are not read, by reason.
        payloads: names of pictures, sound and video that rows of a table are to name, by path.
        made_of: what its documents were made of, where the builder made them.
    """

    name: str
    path: str = ""
    licences: list[str] = Field(default_factory=list)
    kind: str
    files: int = 0
    bytes: int = 0
    identity: str
    left_out: dict[str, list[str]] = Field(default_factory=dict)
    payloads: dict[str, str] = Field(default_factory=dict)
    made_of: list[dict[str, Any]] = Field(default_factory=list)


class BuildPlan(_Stored):
    """Sources and parts, in the order in which documents come."""

    sources: list[Source]
    parts: list[Part]
    has_media: bool


def survey(paths: Sequence[str], licences: Sequence[str]) -> list[tuple[Source, list[Slice]]]:
    """Find the files of sources, and what tells whether they change.

    Args:
        paths: of files, directories or patterns, each perhaps as `name=path`.
        licences: each `name=SPDX`.

    Raises:
        DataError: one is missing, holds nothing that can be read, or has the name of another.
    """
    found: dict[str, tuple[Source, list[Slice]]] = {}
    noted = _licences(licences)
    for given in paths:
        name, path = _name_and_path(given)
        if name in found:
            raise DataError(
                f"Two sources are called {name}; give one another name, as in `other={path}`."
            )
        found_here = inputs.listing(path)
        slices, payloads = _slices(path, found_here)
        read = {path for piece in slices for path in (piece.path, piece.caption)}
        identity = hashlib.sha256()
        for file in found_here.files:
            place = found_here.base / file.name
            if str(place) in read:
                stamp = inputs.stamp(place, file)
                identity.update(f"{file.name}\0{file.num_bytes}\0{stamp}\0".encode())
        source = Source(
            name=name,
            path=path,
            licences=noted.pop(name, []),
            kind="+".join(sorted({piece.form for piece in slices})),
            files=len(slices),
            bytes=sum(piece.file_bytes for piece in slices),
            identity=identity.hexdigest(),
            left_out=found_here.left_out,
            payloads=payloads,
        )
        found[name] = (source, slices)
    if noted:
        raise DataError(
            f"--licence names {', '.join(sorted(noted))}, but the sources are {', '.join(found)}."
        )
    return list(found.values())


def part_size(sources: Iterable[Source]) -> int:
    """Bytes of input in a part, unless the user asks for another size."""
    return max(LEAST_PART_BYTES, sum(source.bytes for source in sources) // MOST_PARTS)


def cut(
    surveyed: Sequence[tuple[Source, list[Slice]]], *, part_bytes: int, has_media: bool
) -> BuildPlan:
    """Cut sources into parts; reads large files of lines once, to find where lines begin.

    Args:
        surveyed: the sources.
        part_bytes: about how large parts are.
        has_media: whether documents are stored with payloads.

    Raises:
        DataError: a file cannot be read.
    """
    parts: list[Part] = []
    for number, (_, slices) in enumerate(surveyed):
        gathered: list[Slice] = []
        weight = 0
        for piece in (fine for whole in slices for fine in _cut_file(whole, part_bytes)):
            if gathered and weight + piece.num_bytes > part_bytes:
                parts.append(Part(source=number, slices=gathered))
                gathered, weight = [], 0
            gathered.append(piece)
            weight += piece.num_bytes
        parts.append(Part(source=number, slices=gathered))
    return BuildPlan(sources=[source for source, _ in surveyed], parts=parts, has_media=has_media)


def _name_and_path(given: str) -> tuple[str, str]:
    named = _NAMED.match(given)
    # A path that is there may have an equals sign in its name.
    if named is not None and not os.path.exists(os.path.expanduser(given)):
        return unicodedata.normalize("NFC", named[1]), named[2]
    bare = given.rstrip("/")
    last = PurePosixPath(bare).name
    if "*" in last or "?" in last or "[" in last:
        last = PurePosixPath(bare).parent.name or last
    stem = unicodedata.normalize("NFC", last.removesuffix(_suffix(last) or ""))
    return re.sub(r"[^\w.-]+", "_", stem) or "source", given


def _licences(notes: Sequence[str]) -> dict[str, list[str]]:
    licences: dict[str, list[str]] = {}
    for note in notes:
        name, equals, licence = note.partition("=")
        if not equals or not licence:
            raise DataError(
                f"--licence {note} is not of the form name=SPDX, as `wiki=CC-BY-SA-4.0`."
            )
        licences.setdefault(name, []).append(licence)
    return licences


def _suffix(name: str) -> str | None:
    lowered = name.lower()
    return next((suffix for suffix in SUFFIXES if lowered.endswith(suffix)), None)


def _slices(path: str, listed: Listing) -> tuple[list[Slice], dict[str, str]]:
    """The files of a source as slices, and the payloads that its rows are to name.

    What is left out is noted where the source is listed.
    """
    slices: list[Slice] = []
    texts: dict[str, str] = {}
    identities: dict[str | None, Any] = {}
    for file in listed.files:
        suffix = _suffix(file.name)
        if suffix is None:
            listed.left_out.add(PurePosixPath(file.name).suffix.lower() or "no suffix", file.name)
            continue
        place = str(listed.base / file.name)
        if shown(place) != place:
            raise DataError(f"the name of the file {shown(place)} is not UTF-8; rename it")
        if suffix == ".txt":
            texts.setdefault(os.path.splitext(file.name)[0], place)
        identities[place] = file.identity
        slices.append(
            Slice(
                path=place,
                name=file.name,
                form=SUFFIXES[suffix],
                file_bytes=file.num_bytes,
                num_bytes=file.num_bytes + _FILE_BYTES,
            )
        )
    for piece in slices:
        if piece.form == "media":
            piece.caption = texts.get(os.path.splitext(piece.name)[0])
    used = {piece.caption for piece in slices}
    has_table = any(piece.form in ("jsonl", "csv", "parquet") for piece in slices)
    # Beside texts of their own, and where none has a text, they are what these show: drawings.
    are_drawings = not has_table and used == {None} and any(p.form == "text" for p in slices)
    kept: list[Slice] = []
    payloads: dict[str, str] = {}
    seen: set[Any] = set()
    for piece in slices:
        # A payload may be read once with each text that it has.
        identity = identities[piece.path], identities.get(piece.caption)
        if piece.path in used:
            continue
        if piece.form == "media" and has_table and piece.caption is None:
            payloads[piece.path] = piece.name
        elif piece.form == "media" and are_drawings:
            suffix = PurePosixPath(piece.name).suffix.lower()
            listed.left_out.add(f"{suffix} without a text of its name", piece.name)
        elif (
            piece.form == "text" and has_table and _DESCRIPTION.match(os.path.basename(piece.name))
        ):
            listed.left_out.add("description of a table", piece.name)
        elif identity[0] is not None and identity in seen:
            listed.left_out.add("link to a file that is read already", piece.name)
        else:
            seen.add(identity)
            kept.append(piece)
    if not kept:
        others = f" ({listed.left_out})" if listed.left_out else ""
        raise DataError(
            f"{path} holds nothing that documents can be made of{others}; known are files named "
            f"{', '.join(SUFFIXES)}."
        )
    return kept, payloads


def _cut_file(whole: Slice, part_bytes: int) -> Iterable[Slice]:
    if whole.num_bytes > part_bytes and whole.name.lower().endswith(".jsonl"):
        return _cut_lines(whole, part_bytes)
    if whole.num_bytes > part_bytes and whole.form == "parquet":
        return _cut_row_groups(whole, part_bytes)
    return [whole]


def _cut_lines(whole: Slice, part_bytes: int) -> Iterator[Slice]:
    """Ranges of whole lines; each ends with the line that reaches the size."""
    begin, end, first_row = 0, 0, 1
    with inputs.opened(whole.path) as file:
        for row, line in enumerate(file, 1):
            end += len(line)
            if end - begin >= part_bytes:
                yield _range(whole, begin, end, first_row, end - begin)
                begin, first_row = end, row + 1
    if end > begin:
        yield _range(whole, begin, end, first_row, end - begin)


def _cut_row_groups(whole: Slice, part_bytes: int) -> Iterator[Slice]:
    try:
        with inputs.opened(whole.path) as file:
            metadata = pq.ParquetFile(file).metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            sizes = [
                sum(group.column(n).total_compressed_size for n in range(group.num_columns))
                for group in groups
            ]
            rows = [group.num_rows for group in groups]
    except (DataError, OSError, ValueError):
        yield whole  # reading says what is wrong, and whether that is to be skipped
        return
    begin, first_row = 0, 1
    for end in range(1, len(sizes) + 1):
        if end < len(sizes) and sum(sizes[begin : end + 1]) <= part_bytes:
            continue
        yield _range(whole, begin, end, first_row, sum(sizes[begin:end]))
        first_row += sum(rows[begin:end])
        begin = end


def _range(whole: Slice, begin: int, end: int, first_row: int, num_bytes: int) -> Slice:
    known = {"begin": begin, "end": end, "first_row": first_row, "num_bytes": num_bytes}
    return whole.model_copy(update=known)
