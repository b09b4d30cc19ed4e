"""Files kept in a store in pieces, none of which is ever written over.

A file that grows is sent as what has come since, together with the pieces before it that are no
larger: so each byte is sent a few times, however often, and a file has a few pieces, however long.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Final

import xxhash
from pydantic import Field

from train.errors import RunDirectoryError
from train.storage.place import Place
from train.storage.record import Count, Record

DIRECTORY_NAME: Final = "files"
"""Of the pieces, below the place."""
PIECE_BYTES_AT_MOST: Final = 1 << 26
_BLOCK_BYTES: Final = 1 << 22


class Piece(Record):
    """A part of a file.

    Attributes:
        key: where it lies below the place.
        num_bytes: its size.
        xxh3_128: its hash; None of what an earlier version has written, as a whole file.
    """

    key: str
    num_bytes: Annotated[Count, Field(le=1 << 34)]
    xxh3_128: str | None = None


Files = Mapping[str, Sequence[Piece]]
"""By their names below the place, each as its pieces in order."""


def key_of(name: str, *, begin: int, writing: str) -> str:
    """Where a piece lies that begins at an offset, of a writing that no other is called like."""
    return f"{DIRECTORY_NAME}/{name}/{begin:012d}-{writing}"


def fault_of(files: Files) -> str | None:
    """What is wrong with where files are said to lie; None if nothing is."""
    for name, pieces in files.items():
        for key in (name, *(piece.key for piece in pieces)):
            is_below = key.startswith(f"{DIRECTORY_NAME}/{name}/") or key == name
            if not is_below or {"", ".", ".."} & set(key.split("/")):
                return f"files: {name!r} cannot lie in {key!r}"
    return None


def keys_of(files: Files) -> set[str]:
    """Where all pieces of files lie."""
    return {piece.key for pieces in files.values() for piece in pieces}


def content_of(place: Place, pieces: Sequence[Piece]) -> bytes:
    """A file, from its pieces.

    Raises:
        RunDirectoryError: a piece is not what was written.
        OSError: one cannot be read.
    """
    content = bytearray()
    for piece in pieces:
        data = (place / piece.key).read(limit_bytes=piece.num_bytes)
        if len(data) != piece.num_bytes or piece.xxh3_128 not in (None, _hash_of(data)):
            raise RunDirectoryError(
                f"{place / piece.key} is damaged: it is not what was written there; go on in the "
                "directory that wrote it, which writes it anew"
            )
        content += data
    return bytes(content)


def kept_of(path: Path, pieces: Sequence[Piece], *, num_bytes: int) -> list[Piece]:
    """Those of a file's pieces that are its beginning still, up to a size.

    Raises:
        OSError: it cannot be read.
    """
    kept: list[Piece] = []
    with path.open("rb") as file:
        for piece in pieces:
            num_bytes -= piece.num_bytes
            if num_bytes < 0 or piece.xxh3_128 != _hash_of(*_blocks(file, piece.num_bytes)):
                break
            kept.append(piece)
    return kept


def sent(
    place: Place, path: Path, name: str, pieces: Sequence[Piece], *, num_bytes: int, writing: str
) -> list[Piece]:
    """Write what a store lacks of a file; the pieces that it has then.

    Args:
        place: where to.
        path: of the file.
        name: of it, below the place.
        pieces: of what the store has of it.
        num_bytes: up to where; it may grow meanwhile.
        writing: what no earlier one was called.

    Raises:
        OSError: the file cannot be read, or the store be written.
    """
    kept = kept_of(path, pieces, num_bytes=num_bytes)
    begin = sum(piece.num_bytes for piece in kept)
    while begin < num_bytes and kept:
        last = kept[-1].num_bytes
        if last > min(num_bytes - begin, PIECE_BYTES_AT_MOST - 1):
            break
        begin -= kept.pop().num_bytes
    with path.open("rb") as file:
        file.seek(begin)
        while begin < num_bytes:
            data = file.read(min(num_bytes - begin, PIECE_BYTES_AT_MOST))
            if not data:
                break  # it was cut meanwhile
            key = key_of(name, begin=begin, writing=writing)
            (place / key).write(data)
            kept.append(Piece(key=key, num_bytes=len(data), xxh3_128=_hash_of(data)))
            begin += len(data)
    return kept


def _blocks(file: IO[bytes], num_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0 and (block := file.read(min(num_bytes, _BLOCK_BYTES))):
        num_bytes -= len(block)
        yield block


def _hash_of(*blocks: bytes) -> str:
    hashed = xxhash.xxh3_128()
    for block in blocks:
        hashed.update(block)
    return hashed.hexdigest()
