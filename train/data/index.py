"""The index of an MDS directory, read with suspicion."""

import json
from pathlib import PurePosixPath
from typing import Any, Final

from model import torchvision_free
from train.errors import DataError

torchvision_free.install()

from streaming.base.format import reader_from_json  # noqa: E402  # after install()
from streaming.base.format.mds.reader import MDSReader  # noqa: E402  # after install()

INDEX_NAME: Final = "index.json"
MANIFEST_NAME: Final = "manifest.json"


def parse_index(data: bytes, *, place: str, directory: str) -> list[MDSReader]:
    """The shards that an index lists, as mosaicml-streaming's own readers.

    Args:
        data: the file's content.
        place: what to call the directory in messages.
        directory: local directory that the readers read from.

    Raises:
        DataError: it is no index of uncompressed MDS shards with a `tokens` column, a column
            would have to be unpickled, or an entry points outside the directory.
    """
    where = f"{place}/{INDEX_NAME}"
    try:
        index = json.loads(data)
        entries: list[dict[str, Any]] = index["shards"]
        shards = [_reader(entry, where=where, directory=directory) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise DataError(
            f"{where} is damaged or is no MDS index ({type(error).__name__}: {error}); copy or "
            "build the corpus again."
        ) from error
    if not any(shard.samples for shard in shards):
        raise DataError(f"{where} lists no samples; build the corpus again with more text.")
    return shards


def parse_manifest(data: bytes, *, place: str) -> dict[str, Any]:
    """The manifest beside an index.

    Raises:
        DataError: it is not a JSON object.
    """
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise DataError(f"{place}/{MANIFEST_NAME} is not JSON ({error}).") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{place}/{MANIFEST_NAME} does not hold a JSON object.")
    return manifest


def _reader(entry: dict[str, Any], *, where: str, directory: str) -> MDSReader:
    if entry["format"] != "mds":
        raise DataError(f"{where} lists {entry['format']} shards; only MDS can be read.")
    if entry.get("compression") or entry.get("zip_data"):
        raise DataError(
            f"{where} lists compressed shards ({entry.get('compression')}); write them with "
            "compression=None."
        )
    for name, encoding in zip(entry["column_names"], entry["column_encodings"], strict=True):
        if encoding == "pkl":
            raise DataError(
                f"{where}: column {name} is pickled, and reading it could run any code; write "
                "tokens as ndarray."
            )
    if "tokens" not in entry["column_names"]:
        raise DataError(
            f"{where} has the columns {', '.join(entry['column_names'])} but no `tokens`; build "
            "the corpus with `python -m tools.corpus build`."
        )
    name = entry["raw_data"]["basename"]
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name or "\0" in name:
        raise DataError(f"{where}: the shard path {name!r} leaves the corpus directory.")
    reader = reader_from_json(directory, None, entry)
    assert isinstance(reader, MDSReader), "only mds entries get here"
    if min(reader.samples, reader.raw_data.bytes) < 0:
        raise ValueError(f"negative size of {name}")
    reader.validate(allow_unsafe_types=False)
    return reader
