"""A corpus that is there: its manifest and its splits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.corpus import inputs
from tools.corpus.tokenizer import TOKENIZER_NAME, CorpusTokenizer
from train.data.corpus import require_documents
from train.data.document import Document
from train.data.store.index import INDEX_NAME
from train.data.store.manifest import MANIFEST_NAME, parse_manifest
from train.data.store.shards import ShardStore
from train.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus, or one split of it.

    Attributes:
        path: as the user wrote it, without a slash at the end.
        manifest: of the corpus.
        splits: where each is.
    """

    path: str
    manifest: dict[str, Any]
    splits: dict[str, str]

    @classmethod
    def at(cls, path: str) -> "Corpus":
        """The corpus at a path or URL.

        Raises:
            DataError: there is none.
        """
        path = path.rstrip("/") or "/"
        manifest_name = f"{path}/{MANIFEST_NAME}"
        if not inputs.is_file(manifest_name):
            raise DataError(
                f"{path} is no corpus: it has no {MANIFEST_NAME}. Give the directory that "
                "`python -m tools.corpus build` wrote; a build that was cut off goes on when it is "
                "called again."
            )
        manifest = parse_manifest(inputs.content(manifest_name), place=path)
        require_documents(manifest, place=path)
        if inputs.is_file(f"{path}/{INDEX_NAME}"):
            return cls(path=path, manifest=manifest, splits={path.rpartition("/")[2]: path})
        summaries = manifest.get("splits")
        if not isinstance(summaries, dict) or not summaries:
            raise DataError(f"{manifest_name} names no splits; build the corpus again.")
        names = [
            str(name)
            for name, numbers in summaries.items()
            if not isinstance(numbers, dict) or numbers.get("samples") != 0
        ]
        if any("/" in name or name.startswith(".") for name in names):
            raise DataError(f"{manifest_name} names splits outside the corpus: {names}.")
        return cls(path=path, manifest=manifest, splits={name: f"{path}/{name}" for name in names})

    def store(self, split: str, *, cache: Path | None = None) -> ShardStore:
        """The samples of a split.

        Raises:
            DataError: there is no such split, or it is damaged.
        """
        if split not in self.splits:
            raise DataError(f"{self.path} has no split {split}; it has {', '.join(self.splits)}.")
        return ShardStore(self.splits[split], cache=cache)

    def tokenizer(self) -> CorpusTokenizer:
        """What it was encoded with.

        Raises:
            DataError: the file is missing or damaged.
        """
        name = f"{self.path}/{TOKENIZER_NAME}"
        return CorpusTokenizer.from_content(inputs.content(name), name=name)


def targets(document: Document) -> npt.NDArray[np.int64]:
    """The tokens of a document that may be predicted: of a span its first at most."""
    if not len(document.spans):
        return document.tokens[document.scored]
    may_be = document.scored
    for begin, end in document.spans:
        may_be[begin + 1 : end] = False
    return document.tokens[may_be]
