"""The manifest beside an index: what a corpus is, and whether it fits a model."""

import json
from typing import Any, Final

from train.errors import DataError

MANIFEST_NAME: Final = "manifest.json"

_MISMATCH: Final = {
    "tokenizer_sha256": (
        "it was built with another tokenizer (SHA-256 {found:.12}…, expected {wanted:.12}…): use "
        "the corpus that the model was trained on, or build one with `--tokenizer` and the "
        "model's tokenizer.json"
    ),
    "vocabulary": (
        "its vocabulary has {found} entries and the model's {wanted}: set the model's vocabulary "
        "to {found}, or build the corpus with `--vocabulary {wanted}`"
    ),
}


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


def require_fit(
    manifest: dict[str, Any],
    *,
    place: str,
    tokenizer_sha256: str | None = None,
    vocabulary: int | None = None,
) -> None:
    """Check that a corpus is the one that a model or another corpus expects.

    Args:
        manifest: of the corpus.
        place: what to call the corpus in messages.
        tokenizer_sha256: hash of the tokenizer file that the model was made for.
        vocabulary: ids that the model knows.

    Raises:
        DataError: it is not, or has no manifest to tell.
    """
    wanted = {
        "tokenizer_sha256": tokenizer_sha256,
        "vocabulary": vocabulary,
    }
    faults: list[str] = []
    for key, value in wanted.items():
        if value is None:
            continue
        if key not in manifest:
            raise DataError(
                f"{place} has no {MANIFEST_NAME} that states its {key}, so it cannot be "
                "checked; build it with `python -m tools.corpus build`."
            )
        if manifest[key] != value:
            faults.append(_MISMATCH[key].format(found=manifest[key], wanted=value))
    if faults:
        raise DataError(f"{place} does not fit: " + "; ".join(faults) + ".")


def require_promised(manifest: dict[str, Any], *, place: str, samples: int) -> None:
    """Check that an index lists as many samples as the manifest promises for the split.

    The split is what the directory is called. Nothing is checked where nothing is promised.

    Raises:
        DataError: it lists more or fewer, so an epoch would not be what was built.
    """
    split = place.rstrip("/").rpartition("/")[2]
    splits = manifest.get("splits")
    summary = splits.get(split) if isinstance(splits, dict) else None
    promised = summary.get("samples") if isinstance(summary, dict) else None
    if promised is not None and promised != samples:
        raise DataError(
            f"{place} lists {samples:,} samples where its {MANIFEST_NAME} promises {promised:,}; "
            "copy or build the corpus again."
        )
