"""Documents that are read back: each has a schema, and what does not fit it is refused.

What is believed of a document is what its schema states. Numbers are counts of things that there
can be, so that none of them makes a program wait or allocate for ever.
"""

from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from train.errors import DataError, UserError
from train.storage.place import Place

COUNT_BELOW: Final = 1 << 53
"""JSON's numbers are exact up to here."""
_SHOWN: Final = 300

Count = Annotated[int, Field(ge=0, lt=COUNT_BELOW)]
"""A number of things, none or more."""

Document = TypeVar("Document")


class Record(BaseModel):
    """A document, or a part of one; keys of a later version are passed over."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Version(Record):
    """What a document of any version says."""

    format_version: Count


def content_of(path: Place | Path, *, limit_bytes: int) -> bytes:
    """All of a file.

    Args:
        path: of the file.
        limit_bytes: refuse one that is larger.

    Raises:
        OSError: it is not there; FileNotFoundError or NotADirectoryError.
        DataError: it is no file, is larger, or cannot be read.
    """
    try:
        return Place.of(path).read(limit_bytes=limit_bytes)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error


def parse(
    schema: type[Document] | TypeAdapter[Document],
    data: bytes | str,
    *,
    name: str,
    error: type[UserError],
    remedy: str,
) -> Document:
    """What a JSON document says.

    Args:
        schema: what it has to be.
        data: the file's content.
        name: of the file, for messages.
        error: to raise.
        remedy: what the user can do, as the end of a sentence.

    Raises:
        UserError: of the kind of `error`; it is no such document.
    """
    adapter = schema if isinstance(schema, TypeAdapter) else TypeAdapter(schema)
    try:
        return adapter.validate_json(data, strict=True)
    except ValidationError as refused:
        raise error(f"{name} is damaged: {fault_of(refused)}; {remedy}") from refused


def fault_of(refused: ValidationError) -> str:
    """The first thing that is wrong with a document: the field, and what it should be."""
    fault: Any = refused.errors(include_url=False, include_input=False)[0]
    told = str(fault["msg"]).removeprefix("Value error, ").replace("Invalid JSON", "it is not JSON")
    where = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    said = f"{where}: {told}" if where else told
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"
