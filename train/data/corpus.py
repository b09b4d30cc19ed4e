"""A corpus as `python -m tools.corpus` lays it out: two splits and the tokenizer."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.document import DOCUMENTS_KIND
from train.data.store.shards import ShardStore
from train.data.tokens import SpecialTokens
from train.errors import DataError
from train.storage.config import StorageConfig

COUNTED_SAMPLES = 4_096
"""Training samples that are counted where a corpus brings no counts of its own."""


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
                f"{self.root}/{split}",
                cache=cache / split if cache else None,
                storage=storage,
            )
            for split in ("train", "validation")
        )
        self.special = SpecialTokens.from_manifest(self.train.manifest)
        self.tokenizer_sha256 = str(self.train.manifest.get("tokenizer_sha256", "unknown"))

    @property
    def fingerprint(self) -> str:
        """Equal for two corpora if and only if their samples are, wherever they lie."""
        parts: list[Any] = [self.train.fingerprint, self.validation.fingerprint]
        if self.train.manifest.get("kind") == DOCUMENTS_KIND:
            # Where rows begin and end follows from these.
            parts += [self.train.lengths_fingerprint, self.validation.lengths_fingerprint]
        parts.append(self.special.to_manifest())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def require(self, *, vocabulary: int, sequence_tokens: int) -> None:
        """Check that both splits fit a model.

        Raises:
            DataError: they do not; the message says what to change.
        """
        has_documents = self.train.manifest.get("kind") == DOCUMENTS_KIND
        for split in (self.train, self.validation):
            split.require(
                vocabulary=vocabulary,
                # Documents are as long as they are: packing makes sequences of them.
                sequence_tokens=None if has_documents else sequence_tokens,
            )

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

        A corpus without counts is counted over its first samples.
        """
        content = self.train.read_beside("token_counts.npy")
        if content is not None:
            try:
                return np.load(io.BytesIO(content), allow_pickle=False)
            except ValueError:
                raise DataError(
                    f"{self.root}/train/token_counts.npy is damaged: build the corpus again"
                ) from None
        vocabulary = int(self.train.manifest["vocabulary"])
        counts = np.zeros(vocabulary, dtype=np.int64)
        for sample_id in range(min(COUNTED_SAMPLES, len(self.train))):
            columns = self.train.columns(sample_id)
            tokens = np.asarray(columns["tokens"], dtype=np.int64)
            if "scored" in columns:
                tokens = tokens[np.asarray(columns["scored"], dtype=np.bool_)]
            counts += np.bincount(tokens, minlength=vocabulary)
        return counts
