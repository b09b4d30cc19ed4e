"""A corpus as `python -m tools.corpus` lays it out: two splits and the tokenizer."""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from train.data.object_store import MissingObjectError, ObjectStore
from train.data.shards import ShardStore, default_cache
from train.data.tokens import SpecialTokens
from train.errors import DataError

COUNTED_SAMPLES = 32_768
"""Training samples whose tokens are counted for the unigram baseline."""


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
        self, root: str, *, cache: Path | None, timeout_seconds: float, retries: int
    ) -> None:
        """Open the splits; shards are read when they are asked for.

        Raises:
            DataError: a split is missing or is not MDS.
        """
        self.root = root.rstrip("/")
        self._remote = (
            ObjectStore(self.root, timeout_seconds=timeout_seconds, retries=retries)
            if "://" in root
            else None
        )
        base = cache or (default_cache(self.root) if self._remote else None)
        self.train, self.validation = (
            ShardStore(
                f"{self.root}/{split}",
                cache=base / split if base else None,
                timeout_seconds=timeout_seconds,
                retries=retries,
            )
            for split in ("train", "validation")
        )
        self.special = SpecialTokens.from_manifest(self.train.manifest)
        self.tokenizer_sha256 = str(self.train.manifest.get("tokenizer_sha256", "unknown"))

    def require(self, *, vocabulary: int, sequence_tokens: int) -> None:
        """Check that both splits fit a model.

        Raises:
            DataError: they do not; the message says what to change.
        """
        for split in (self.train, self.validation):
            split.require(vocabulary=vocabulary, sequence_tokens=sequence_tokens)

    def copy_tokenizer(self, destination: Path) -> None:
        """Bring the tokenizer to where a run keeps it, unless it is there.

        Raises:
            DataError: the corpus has none.
        """
        if destination.exists():
            return
        missing = f"{self.root} has no tokenizer.json: build it again with python -m tools.corpus"
        with tempfile.TemporaryDirectory(dir=destination.parent) as scratch:
            fetched = Path(scratch) / "tokenizer.json"
            try:
                if self._remote is None:
                    fetched.write_bytes((Path(self.root) / "tokenizer.json").read_bytes())
                else:
                    self._remote.fetch("tokenizer.json", fetched)
            except (FileNotFoundError, MissingObjectError):
                raise DataError(missing) from None
            fetched.replace(destination)

    def token_counts(self) -> npt.NDArray[np.int64]:
        """[V] how often each token occurs in the first training samples, padding left out."""
        vocabulary = int(self.train.manifest["vocabulary"])
        counts = np.zeros(vocabulary, dtype=np.int64)
        for sample_id in range(min(COUNTED_SAMPLES, len(self.train))):
            sample = self.train[sample_id]
            tokens = sample.tokens if sample.scored is None else sample.tokens[sample.scored]
            counts += np.bincount(tokens, minlength=vocabulary)
        return counts
