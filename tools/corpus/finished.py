"""A corpus that is there: its manifest and its splits."""

from dataclasses import dataclass
from pathlib import Path

from tools.corpus import inputs
from tools.corpus.tokenizer import TOKENIZER_NAME, CorpusTokenizer
from train.data.corpus import require_documents
from train.data.store.index import INDEX_NAME
from train.data.store.manifest import (
    MANIFEST_BYTES_AT_MOST,
    MANIFEST_NAME,
    Manifest,
    parse_manifest,
)
from train.data.store.shards import ShardStore
from train.errors import DataError
from train.storage.place import Place


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus, or one split of it.

    Attributes:
        place: where it is.
        manifest: of the corpus.
        splits: where each is.
    """

    place: Place
    manifest: Manifest
    splits: dict[str, Place]

    @classmethod
    def at(cls, path: str) -> "Corpus":
        """The corpus at a path or URL.

        Raises:
            DataError: there is none.
        """
        place = Place.parse(path)
        with inputs.named(place):
            if not (place / MANIFEST_NAME).exists():
                raise DataError(
                    f"{place} is no corpus: it has no {MANIFEST_NAME}. Give the directory that "
                    "`python -m tools.corpus build` wrote; a build that was cut off goes on when "
                    "it is called again."
                )
            content = (place / MANIFEST_NAME).read(limit_bytes=MANIFEST_BYTES_AT_MOST)
            manifest = parse_manifest(content, place=str(place))
            require_documents(manifest, place=str(place))
            if (place / INDEX_NAME).find() is not None:
                return cls(place=place, manifest=manifest, splits={place.name: place})
        if not manifest.splits:
            raise DataError(f"{place}/{MANIFEST_NAME} names no splits; build the corpus again.")
        names = [name for name, numbers in manifest.splits.items() if numbers.samples != 0]
        if "train" not in names and not any("/" in name for name in names):
            raise DataError(
                f"{place}/{MANIFEST_NAME} names no split train, which every corpus has; build the "
                "corpus again."
            )
        if any("/" in name or name.startswith(".") for name in names):
            raise DataError(f"{place}/{MANIFEST_NAME} names splits outside the corpus: {names}.")
        return cls(place=place, manifest=manifest, splits={name: place / name for name in names})

    def store(self, split: str, *, cache: Path | None = None) -> ShardStore:
        """The samples of a split.

        Raises:
            DataError: there is no such split, or it is damaged.
        """
        if split not in self.splits:
            raise DataError(f"{self.place} has no split {split}; it has {', '.join(self.splits)}.")
        return ShardStore(str(self.splits[split]), cache=cache)

    def tokenizer(self) -> CorpusTokenizer:
        """What it was encoded with.

        Raises:
            DataError: the file is missing or damaged.
        """
        return CorpusTokenizer.from_file(self.place / TOKENIZER_NAME)
