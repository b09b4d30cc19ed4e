"""What becomes of a record: a row that tasks ask, and documents for a corpus.

A document is asked as the first template of `configs/task/public_media` asks it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

Row = Mapping[str, Any]

_TEXTS: Final = pa.list_(pa.string())
_OF_ALL: Final = [("id", pa.string()), ("group", pa.string())]
_SEGMENT: Final = pa.struct(
    [
        ("image", pa.string()),
        ("text", pa.string()),
        ("scored", pa.bool_()),
        ("ends_paragraph", pa.bool_()),
    ]
)
_SEGMENTS: Final = pa.schema([("id", pa.string()), ("segments", pa.list_(_SEGMENT))])


@dataclass(frozen=True, kw_only=True)
class Form:
    """How records of some data sets look.

    Attributes:
        media: columns that hold a medium, by its path beside the file.
        row: columns of what tasks ask.
        document: columns of documents.
        documents: those that a row gives.
    """

    media: tuple[str, ...]
    row: pa.Schema
    document: pa.Schema
    documents: Callable[[Row], Iterator[Row]]


def _captions(medium: str, *, together: bool = False) -> Form:
    def documents(row: Row) -> Iterator[Row]:
        told = row["captions"]
        for at, caption in enumerate(["\n\n".join(told)] if together else told):
            # Behind a space, as a task's answer stands.
            yield {"id": f"{row['id']}#{at}", medium: row[medium], "text": f" {caption}"}

    return Form(
        media=(medium,),
        row=pa.schema(
            [*_OF_ALL, (medium, pa.string()), ("captions", _TEXTS), ("domain", pa.string())]
        ),
        document=pa.schema([("id", pa.string()), (medium, pa.string()), ("text", pa.string())]),
        documents=documents,
    )


def _asked(row: Row, question: str, answer: str, *images: str) -> Iterator[Row]:
    segments: list[Row] = [{"image": row[image]} for image in images]
    segments.append({"text": question, "scored": False, "ends_paragraph": False})
    segments.append({"text": f" {answer}"})
    yield {"id": row["id"], "segments": segments}


CAPTIONS: Final = _captions("image")
"""A picture with captions; `domain` tells those apart that are scored apart. One document each."""
REGIONS: Final = _captions("image", together=True)
"""A picture with some fifty phrases on parts of it, in one document: a corpus would hold the
picture fifty times else."""
CLIPS: Final = _captions("video")
"""A clip with captions."""
QUESTION: Final = Form(
    media=("image",),
    row=pa.schema(
        [*_OF_ALL, ("image", pa.string()), ("question", pa.string()), ("answers", _TEXTS)]
    ),
    document=_SEGMENTS,
    documents=lambda row: _asked(
        row, f"question: {row['question']} answer:", row["answers"][0], "image"
    ),
)
"""A question about a picture, and all answers that people gave, the commonest first."""
PAIR: Final = Form(
    media=("left", "right"),
    row=pa.schema(
        [
            *_OF_ALL,
            *(("left", pa.string()), ("right", pa.string())),
            *(("sentence", pa.string()), ("label", pa.int64())),
        ]
    ),
    document=_SEGMENTS,
    documents=lambda row: _asked(
        row, row["sentence"], f"it is {('false', 'true')[row['label']]}", "left", "right"
    ),
)
"""Whether a sentence is true of two pictures: 1 or 0."""
EXPLANATION: Final = Form(
    media=("image",),
    row=pa.schema(
        [
            *(*_OF_ALL, ("image", pa.string()), ("hypothesis", pa.string())),
            *(("label", pa.string()), ("explanation", pa.string())),
        ]
    ),
    document=_SEGMENTS,
    documents=lambda row: _asked(
        row, row["hypothesis"], f"it is {row['label']} because {row['explanation']}", "image"
    ),
)
"""Whether a picture says so, with a reason."""
TRANSCRIPT: Final = Form(
    media=("audio",),
    row=pa.schema([*_OF_ALL, ("audio", pa.string()), ("text", pa.string())]),
    document=pa.schema([("id", pa.string()), ("audio", pa.string()), ("text", pa.string())]),
    documents=lambda row: iter(
        [{"id": row["id"], "audio": row["audio"], "text": f" {row['text']}"}]
    ),
)
"""Speech with its words."""
