"""What a user wants built."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from tools.corpus.entries import Fields
from tools.corpus.made import Maker
from tools.corpus.slurm import SlurmArray
from tools.corpus.tokenizer import DEFAULT_VOCABULARY, SMALLEST_VOCABULARY, CorpusTokenizer
from tools.corpus.writing import MOST_SHARD_BYTES
from train.errors import DataError
from train.storage.place import Place

FORMAT_VERSION: Final = 1
DEFAULT_VALIDATION: Final = 0.005
DEFAULT_SHARD_BYTES: Final = 1 << 26
SHINGLE_WORDS: Final = 5
_HASHES: Final = "datatrove"
"""Whose hashes nearly equal documents are told by; another name if others would be found."""

Method = Literal["exact", "minhash"]


@dataclass(frozen=True, kw_only=True)
class Dedup:
    """Which documents are duplicates.

    Attributes:
        method: "exact" for equal text, "minhash" for nearly equal text; None to keep all.
        threshold: Jaccard similarity of the sets of five successive words.
        permutations: of MinHash: more of them estimate better and take longer.
    """

    method: Method | None = None
    threshold: float = 0.8
    permutations: int = 128

    def to_recipe(self) -> dict[str, Any]:
        """What the result depends on."""
        if self.method == "minhash":
            return {**asdict(self), "shingle_words": SHINGLE_WORDS, "hashes": _HASHES}
        return {"method": self.method}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What corpus is wanted.

    Attributes:
        sources: files, directories, patterns or URLs, each perhaps as `name=path`.
        made: documents that come before those of the sources; None for none.
        licences: each `name=SPDX`.
        tokenizer: a tokenizer.json to use; None to train one.
        vocabulary: entries of the tokenizer.
        fields: columns of tables.
        validation: share of documents.
        shard_bytes: limit of a shard.
        part_bytes: input handled at once; None to choose by the size of the sources.
        has_media: store payloads whatever the first rows show.
        skip_bad: how many documents may be bad.
        workers: processes; of each task where there is an array.
        array: whose tasks build the parts; None to build them here.
        dedup: which documents are left out because an earlier one is like them.

    Raises:
        DataError: a number makes no sense.
    """

    sources: Sequence[str] = ()
    made: Maker | None = None
    licences: Sequence[str] = ()
    tokenizer: Place | Path | None = None
    vocabulary: int | None = None
    fields: Fields = field(default_factory=Fields)
    validation: float = DEFAULT_VALIDATION
    shard_bytes: int = DEFAULT_SHARD_BYTES
    part_bytes: int | None = None
    has_media: bool = False
    skip_bad: int = 0
    workers: int = 1
    array: SlurmArray | None = None
    dedup: Dedup = field(default_factory=Dedup)

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not 0 <= self.validation < 1:
            raise DataError(f"--validation {self.validation} is not a share from 0 to below 1.")
        if not 1 <= self.shard_bytes < MOST_SHARD_BYTES:
            raise DataError("--shard-mebibytes must be above 0 and below 2048.")
        if self.made is not None and self.fields.only:
            raise DataError("documentation has no rows: leave out --only")

    def given_tokenizer(self) -> CorpusTokenizer | None:
        """The tokenizer to use; None where one is to be trained.

        Raises:
            DataError: it cannot be read, or the vocabulary does not fit.
        """
        if self.tokenizer is None:
            if self.trained_vocabulary < SMALLEST_VOCABULARY:
                raise DataError(
                    f"A vocabulary of {self.vocabulary} cannot hold all bytes and special tokens; "
                    f"ask for --vocabulary {SMALLEST_VOCABULARY} or more."
                )
            return None
        given = CorpusTokenizer.from_file(self.tokenizer)
        if self.vocabulary not in (None, given.vocabulary):
            raise DataError(
                f"The tokenizer has {given.vocabulary} entries, not {self.vocabulary}; leave out "
                "--vocabulary."
            )
        return given

    @property
    def trained_vocabulary(self) -> int:
        """Entries of a tokenizer that is trained."""
        return self.vocabulary or DEFAULT_VOCABULARY

    def recipe(
        self, sources: Sequence[Mapping[str, Any]], given: CorpusTokenizer | None, part_bytes: int
    ) -> dict[str, Any]:
        """All that the result depends on.

        Args:
            sources: what tells whether their files change.
            given: the tokenizer, unless it is trained.
            part_bytes: input handled at once.
        """
        only = {path: sorted(values) for path, values in sorted(self.fields.only.items())}
        trained = {"trained_with_vocabulary": self.trained_vocabulary}
        return {
            "format_version": FORMAT_VERSION,
            "sources": list(sources),
            "tokenizer": trained if given is None else {"sha256": given.sha256},
            "text_field": self.fields.text,
            "id_field": self.fields.id,
            **({"only": only} if only else {}),
            "validation": self.validation,
            "shard_bytes": self.shard_bytes,
            "part_bytes": part_bytes,
            "media": self.has_media,
            "dedup": self.dedup.to_recipe(),
        }
