"""A corpus as `python -m tools.corpus` builds it: two splits of documents and the tokenizer."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.document import DOCUMENTS_KIND
from train.data.store.manifest import MANIFEST_NAME, Manifest, differing, require_sha256
from train.data.store.shards import ShardStore, parse_array
from train.data.tokens import TOKENIZER_BYTES_AT_MOST
from train.errors import DataError
from train.storage.config import StorageConfig
from train.storage.record import COUNT_BELOW

COUNTED_DOCUMENTS = 4_096
"""Training documents that are counted where a corpus brings no counts of its own."""
TOKEN_COUNTS_NAME = "token_counts.npy"
_OVERHEAD_BYTES = 4096
_KINDS_OF_SEQUENCES = ("pretraining", "instruction")


def require_documents(manifest: Manifest, *, place: str) -> None:
    """Refuse what is no corpus of documents, such as one of sequences of earlier versions.

    Raises:
        DataError: it is none.
    """
    kind = manifest.kind
    if kind not in (DOCUMENTS_KIND, *_KINDS_OF_SEQUENCES) and manifest.sequence_tokens is None:
        raise DataError(
            f"{place}/{MANIFEST_NAME} is damaged: it is of the kind {str(kind)[:40]}, not "
            f"{DOCUMENTS_KIND}; copy or build the corpus again"
        )
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
            DataError: a split is missing or is not MDS, or they are not of one corpus.
        """
        self.root = root.rstrip("/")
        self.train, self.validation = (
            ShardStore(
                f"{self.root}/{split}", cache=cache / split if cache else None, storage=storage
            )
            for split in ("train", "validation")
        )
        require_documents(self.train.manifest, place=self.root)
        if others := differing(self.train.manifest, self.validation.manifest):
            raise DataError(
                f"{self.validation.root}/{MANIFEST_NAME} is of another corpus than that of train "
                f"(its {' and '.join(others)}): copy or build the corpus again"
            )
        self.special = self.train.manifest.special_tokens
        self.tokenizer_sha256 = self.train.manifest.tokenizer_sha256 or "unknown"

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

    def tokenizer(self) -> bytes:
        """The tokenizer's file.

        Raises:
            DataError: the corpus has none.
        """
        content = self.train.read_beside("tokenizer.json", limit_bytes=TOKENIZER_BYTES_AT_MOST)
        if content is None:
            raise DataError(f"{self.root}/train has no tokenizer.json: build the corpus again")
        stated = self.train.manifest.tokenizer_sha256
        if stated not in (None, hashlib.sha256(content).hexdigest()):
            raise DataError(
                f"{self.root}/train/tokenizer.json is not the tokenizer of {MANIFEST_NAME}: copy "
                "or build the corpus again"
            )
        return content

    def copy_tokenizer(self, destination: Path) -> None:
        """Bring the tokenizer to where a run keeps it, unless it is there.

        Raises:
            DataError: the corpus has none.
        """
        if destination.exists():
            return
        content = self.tokenizer()
        temporary = destination.with_suffix(".tmp")
        temporary.write_bytes(content)
        temporary.replace(destination)

    def token_counts(self) -> npt.NDArray[np.int64]:
        """[V] how often each token occurs in training, as the corpus tells or a part of it shows.

        A corpus without counts is counted over its first documents.

        Raises:
            DataError: the corpus has counts that are damaged or of another vocabulary.
        """
        vocabulary = self.train.manifest.vocabulary
        assert vocabulary is not None, "checked with the model's"
        place, limit_bytes = self.train.root, 8 * vocabulary + _OVERHEAD_BYTES
        content = self.train.read_beside(TOKEN_COUNTS_NAME, limit_bytes=limit_bytes)
        if content is not None:
            require_sha256(self.train.manifest, content, place=place, name=TOKEN_COUNTS_NAME)
            return parse_token_counts(
                content, name=f"{place}/{TOKEN_COUNTS_NAME}", vocabulary=vocabulary
            )
        counts = np.zeros(vocabulary, dtype=np.int64)
        for number in range(min(COUNTED_DOCUMENTS, len(self.train))):
            tokens = np.asarray(self.train.columns(number)["tokens"], dtype=np.int64)
            if tokens.size and tokens.max() >= vocabulary:
                raise DataError(
                    f"document {number} of {place} has token {tokens.max()}, but its vocabulary "
                    f"has {vocabulary} entries: build the corpus again"
                )
            counts += np.bincount(tokens, minlength=vocabulary)
        return counts


def parse_token_counts(content: bytes, *, name: str, vocabulary: int) -> npt.NDArray[np.int64]:
    """[V] how often each token occurs, from a file that is called `name` in messages.

    Raises:
        DataError: it does not say that.
    """
    counts = parse_array(content, name=name)
    is_whole = counts.shape == (vocabulary,) and counts.dtype.kind in "iu"
    if not is_whole or not 0 <= counts.min() <= counts.max() < COUNT_BELOW:
        raise DataError(
            f"{name} does not hold how often each of the {vocabulary} tokens occurs: remove it, or "
            "build the corpus again"
        )
    return counts.astype(np.int64)
