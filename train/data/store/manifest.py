"""The manifest beside an index: what a corpus is, and whether it fits a model."""

import hashlib
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter, model_validator

from train.data.document import LENGTH_COLUMNS
from train.data.tokens import SPECIAL_TEXT, SpecialTokens
from train.errors import DataError
from train.storage.record import Count, Record, parse

MANIFEST_NAME: Final = "manifest.json"
MANIFEST_BYTES_AT_MOST: Final = 1 << 28
"""It names every document that was skipped, and every file of a source."""
MOST_IDS: Final = 1 << 31
_USUAL_SHARD_BYTES: Final = 1 << 26


class SplitRecord(Record):
    """What a split holds; None where that is not stated."""

    samples: Count | None = None
    documents: Count | None = None
    bytes: Count | None = None
    tokens: Count | None = None
    spans: Count | None = None
    span_tokens: Count | None = None
    image: Count | None = None
    audio: Count | None = None
    video: Count | None = None


class MadeOfRecord(Record):
    """What a source was made of."""

    source: str


class SourceRecord(Record):
    """Where documents came from, and what became of the records there."""

    name: str = "?"
    documents: Count = 0
    tokens: Count = 0
    licences: list[str] = Field(default=[])
    duplicates_removed: Count = 0
    skipped: Count = 0
    records: Count | None = None
    passed_over: Count = 0
    left_out_files: dict[str, Count] = Field(default={})
    made_of: list[MadeOfRecord] = Field(default=[])


class DedupRecord(Record):
    """How duplicates were sought, and how many were left out."""

    method: str | None = None
    duplicates_removed: Count = 0


class RecipeRecord(Record):
    """Of what was asked for, what readers want to know."""

    shard_bytes: Count = _USUAL_SHARD_BYTES


class Manifest(Record):
    """What a corpus is.

    Attributes:
        kind: of what it holds; None where that is not stated, as by other builders.
        sequence_tokens: of each sequence, in corpora of earlier versions.
        vocabulary: ids that its tokenizer may give.
        tokenizer_sha256: of its tokenizer.json.
        special_tokens: their ids.
        splits: by name.
        sources: where documents came from.
        dedup: what became of duplicates.
        skipped: documents that could not be read.
        read_back: how its texts differ from what its tokens spell, for the builder's tools.
        recipe: what was asked for.
        sha256: of the files beside the shards, by their names below the corpus; corpora of earlier
            versions have none.
    """

    kind: str | None = None
    sequence_tokens: Count | None = None
    vocabulary: Annotated[int, Field(ge=1, le=MOST_IDS)] | None = None
    tokenizer_sha256: str | None = None
    special_tokens: SpecialTokens = SpecialTokens()
    splits: dict[str, SplitRecord] = Field(default={})
    sources: list[SourceRecord] = Field(default=[])
    dedup: DedupRecord = DedupRecord()
    skipped: list[str] = Field(default=[])
    read_back: dict[str, Any] | None = None
    recipe: RecipeRecord = RecipeRecord()
    sha256: dict[str, str] = Field(default={})

    @model_validator(mode="after")
    def _ids_of_the_vocabulary(self) -> "Manifest":
        if "special_tokens" not in self.model_fields_set:
            return self
        most = MOST_IDS if self.vocabulary is None else self.vocabulary
        ids = self.special_tokens.to_manifest()
        for name, number in ids.items():
            if not 0 <= number < most:
                raise ValueError(
                    f"special_tokens: {SPECIAL_TEXT[name]} has the id {number}, which is none of "
                    "the vocabulary"
                )
        if len(set(ids.values())) < len(ids):
            raise ValueError("special_tokens: two of them have the same id")
        return self


_MANIFEST: Final[TypeAdapter[Manifest]] = TypeAdapter(Manifest)


def parse_manifest(data: bytes, *, place: str) -> Manifest:
    """The manifest beside an index.

    Raises:
        DataError: it is none.
    """
    name, remedy = f"{place}/{MANIFEST_NAME}", "copy or build the corpus again"
    return parse(_MANIFEST, data, name=name, error=DataError, remedy=remedy)


def require_vocabulary(manifest: Manifest, *, place: str, wanted: int) -> None:
    """Check that a corpus has the vocabulary of a model.

    Args:
        manifest: of the corpus.
        place: what to call the corpus in messages.
        wanted: ids that the model knows.

    Raises:
        DataError: it has not, or no manifest to tell.
    """
    found = manifest.vocabulary
    if found is None:
        raise DataError(
            f"{place} has no {MANIFEST_NAME} that states its vocabulary, so it cannot be checked; "
            "build it with `python -m tools.corpus build`."
        )
    if found != wanted:
        raise DataError(
            f"{place} does not fit: its vocabulary has {found} entries and the model's {wanted}: "
            f"set the model's vocabulary to {found}, or build the corpus with `--vocabulary "
            f"{wanted}`."
        )


def require_promised(manifest: Manifest, *, place: str, samples: int) -> None:
    """Check that an index lists as many samples as the manifest promises for the split.

    The split is what the directory is called. Nothing is checked where nothing is promised.

    Raises:
        DataError: it lists more or fewer, so an epoch would not be what was built.
    """
    promised = _split(manifest, place).samples
    if promised is not None and promised != samples:
        raise DataError(
            f"{place} lists {samples:,} samples where its {MANIFEST_NAME} promises {promised:,}; "
            "copy or build the corpus again."
        )


def require_lengths(manifest: Manifest, *, place: str, name: str, totals: list[int]) -> None:
    """Check that recorded lengths add up to what the manifest promises, as `require_promised`.

    Args:
        manifest: of the corpus.
        place: of the split.
        name: of the listing of lengths.
        totals: sums of `LENGTH_COLUMNS`.

    Raises:
        DataError: they do not, so other sequences would be read than the documents make.
    """
    split = _split(manifest, place)
    for column, total in zip(LENGTH_COLUMNS, totals, strict=True):
        promised = getattr(split, column)
        if promised is not None and promised != total:
            raise DataError(
                f"{place}/{name} counts {total:,} ({column}) where {MANIFEST_NAME} promises "
                f"{promised:,}; copy or build the corpus again."
            )


def require_sha256(manifest: Manifest, data: bytes, *, place: str, name: str) -> None:
    """Check a file beside the shards of a split, where the manifest vouches for it.

    Raises:
        DataError: it is not the one that was built.
    """
    wanted = manifest.sha256.get(f"{place.rpartition('/')[2]}/{name}")
    if wanted is not None and hashlib.sha256(data).hexdigest() != wanted:
        raise DataError(
            f"{place}/{name} is damaged: its sha256 hash is not the one in {MANIFEST_NAME}; copy "
            "or build the corpus again."
        )


def _split(manifest: Manifest, place: str) -> SplitRecord:
    return manifest.splits.get(place.rpartition("/")[2], SplitRecord())


def differing(one: Manifest, other: Manifest) -> list[str]:
    """In what the documents of two manifests are not of one kind."""
    named: list[Any] = ["kind", "vocabulary", "tokenizer_sha256", "special_tokens"]
    return [name for name in named if getattr(one, name) != getattr(other, name)]
