"""The manifest beside an index: what a corpus is, and whether it fits a model."""

import json
from typing import Any, Final

from train.errors import DataError

MANIFEST_NAME: Final = "manifest.json"


def parse_manifest(data: bytes, *, place: str) -> dict[str, Any]:
    """The manifest beside an index.

    Raises:
        DataError: it is not a JSON object.
    """
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}/{MANIFEST_NAME} is not JSON ({error}).") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{place}/{MANIFEST_NAME} does not hold a JSON object.")
    return manifest


def require_vocabulary(manifest: dict[str, Any], *, place: str, wanted: int) -> None:
    """Check that a corpus has the vocabulary of a model.

    Args:
        manifest: of the corpus.
        place: what to call the corpus in messages.
        wanted: ids that the model knows.

    Raises:
        DataError: it has not, or no manifest to tell.
    """
    found = manifest.get("vocabulary")
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


def require_promised(manifest: dict[str, Any], *, place: str, samples: int) -> None:
    """Check that an index lists as many samples as the manifest promises for the split.

    The split is what the directory is called. Nothing is checked where nothing is promised.

    Raises:
        DataError: it lists more or fewer, so an epoch would not be what was built.
    """
    splits = manifest.get("splits")
    summary = splits.get(place.rpartition("/")[2]) if isinstance(splits, dict) else None
    promised = summary.get("samples") if isinstance(summary, dict) else None
    if promised is not None and promised != samples:
        raise DataError(
            f"{place} lists {samples:,} samples where its {MANIFEST_NAME} promises {promised:,}; "
            "copy or build the corpus again."
        )
