"""A corpus as `python -m tools.corpus` builds it: two splits of documents and the tokenizer."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.document import DOCUMENTS_KIND
from train.data.store.shards import ShardStore, parse_array
from train.data.tokens import SpecialTokens
from train.errors import DataError
from train.storage.config import StorageConfig

COUNTED_DOCUMENTS = 4_096
"""Training documents that are counted where a corpus brings no counts of its own."""


def require_documents(manifest: Mapping[str, Any], *, place: str) -> None:
    """Refuse a corpus of sequences of one length, as earlier versions built them.

    Raises:
        DataError: it is one.
    """
    kind = manifest.get("kind")
    if kind != DOCUMENTS_KIND:
        rebuilt = "instruct" if kind == "instruction" else "build"
        raise DataError(
            f"{place} holds sequences of one length, not documents, as earlier versions built "
            f"them: move it away and run `python -m tools.corpus {rebuilt}` with the same sources "
            "and --tokenizer its tokenizer.json; read as data.pack=stream they make the same "
            "sequences"
        )


class Corpus:
    """Both splits of a corpus in a directory or in object storage.

    Attributes:
        root: directory or URL.
        train: the training split.
        validation: the validation split.
        special: ids of the special tokens.
        tokenizer_sha256: which tokenizer wrote it.
    """

    def __init__(
        self, root: str, *, cache: Path | None = None, storage: StorageConfig | None = None
    ) -> None:
        """Open the splits; shards are read when they are asked for.

        Args:
            root: directory or URL.
            cache: where remote files are kept; None is the default place.
            storage: how object storage is read.

        Raises:
            DataError: a split is missing or is not MDS.
        """
        self.root = root.rstrip("/")
        self.train, self.validation = (
            ShardStore(
                f"{self.root}/{split}", cache=cache / split if cache else None, storage=storage
            )
            for split in ("train", "validation")
        )
        require_documents(self.train.manifest, place=self.root)
        self.special = SpecialTokens.from_manifest(self.train.manifest)
        self.tokenizer_sha256 = str(self.train.manifest.get("tokenizer_sha256", "unknown"))

    @property
    def fingerprint(self) -> str:
        """Equal for two corpora if and only if their samples are, wherever they lie."""
        parts: list[Any] = [
            *(self.train.index.sha256, self.validation.index.sha256),
            # Where sequences begin and end follows from these.
            *(self.train.lengths_index.sha256, self.validation.lengths_index.sha256),
            self.special.to_manifest(),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def copy_tokenizer(self, destination: Path) -> None:
        """Bring the tokenizer to where a run keeps it, unless it is there.

        Raises:
            DataError: the corpus has none.
        """
        if destination.exists():
            return
        content = self.train.read_beside("tokenizer.json")
        if content is None:
            raise DataError(f"{self.root}/train has no tokenizer.json: build the corpus again")
        temporary = destination.with_suffix(".tmp")
        temporary.write_bytes(content)
        temporary.replace(destination)

    def token_counts(self) -> npt.NDArray[np.int64]:
        """[V] how often each token occurs in training, as the corpus tells or a part of it shows.

        A corpus without counts is counted over its first documents.

        Raises:
            DataError: the corpus has counts that are damaged or of another vocabulary.
        """
        vocabulary = int(self.train.manifest["vocabulary"])
        content = self.train.read_beside("token_counts.npy")
        if content is not None:
            name = f"{self.root}/train/token_counts.npy"
            counts = parse_array(content, name=name)
            if counts.shape != (vocabulary,) or counts.dtype.kind not in "iu" or counts.min() < 0:
                raise DataError(
                    f"{name} does not hold how often each of the {vocabulary} tokens occurs: "
                    "remove it, or build the corpus again"
                )
            return counts
        counts = np.zeros(vocabulary, dtype=np.int64)
        for number in range(min(COUNTED_DOCUMENTS, len(self.train))):
            tokens = np.asarray(self.train.columns(number)["tokens"], dtype=np.int64)
            counts += np.bincount(tokens, minlength=vocabulary)
        return counts
