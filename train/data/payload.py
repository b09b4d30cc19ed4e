"""What a record holds of a file: its bytes, or where it lies."""

import base64
import binascii
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any


def payload(value: Any, *, fetch: Callable[[str], bytes]) -> bytes:
    """The content of a file.

    Args:
        value: bytes, the path of a file, or a mapping with `bytes` or else `path`, as the datasets
            library stores pictures and sound; in JSON its `bytes` are in base 64.
        fetch: reads the file of a path.

    Raises:
        ValueError: it is none of these; the message is the end of a sentence.
    """
    if isinstance(value, Mapping):
        content = value.get("bytes")
        if isinstance(content, str):
            try:
                return base64.b64decode(content, validate=True)
            except (binascii.Error, ValueError) as error:
                raise ValueError(f"has bytes that are not in base 64 ({error})") from error
        value = content or value.get("path")
    if isinstance(value, str):
        value = fetch(value)
    if not isinstance(value, bytes):
        raise ValueError("is neither a path nor bytes")
    return value


def below(name: str) -> PurePosixPath:
    """A path from the directory of what names it.

    Raises:
        ValueError: it leads elsewhere; the message is the end of a sentence.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "://" in name or not path.parts:
        raise ValueError(f"the path {name!r} does not lie beside the table or below")
    return path
