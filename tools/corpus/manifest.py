"""Makes a corpus of finished parts: indexes, lengths, counts, and last the manifest."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from tools.corpus.part import PartRecord, counts_name
from tools.corpus.plan import BuildPlan
from tools.corpus.tokenizer import TOKENIZER_NAME, CorpusTokenizer
from tools.corpus.words import counted
from tools.corpus.workshop import PARTS, SPLITS, Workshop
from tools.corpus.writing import ShardRecord
from train.data.document import DOCUMENTS_KIND, LENGTH_COLUMNS, LENGTHS_NAME
from train.data.store.index import INDEX_NAME
from train.data.store.manifest import MANIFEST_NAME
from train.errors import DataError

FORMAT_VERSION: Final = 1
LENGTHS_VERSION: Final = 1
TOKEN_COUNTS_NAME: Final = "token_counts.npy"
_SHARES: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(tenths / 10 for tenths in range(1, 10)))
"""Of validation, to be proposed."""


def finish(
    workshop: Workshop,
    *,
    plan: BuildPlan,
    records: Sequence[PartRecord],
    tokenizer: CorpusTokenizer,
    recipe: Mapping[str, Any],
) -> dict[str, Any]:
    """Write all that lies beside the shards, and commit.

    Args:
        workshop: where the parts are.
        plan: of the parts.
        records: of all parts, in order.
        tokenizer: that they were encoded with.
        recipe: what was asked for.

    Returns:
        The manifest.

    Raises:
        DataError: a split holds no document. What was built is removed, because only other
            arguments can help.
    """
    shards = {
        split: [shard for record in records for shard in record.shards[split]] for split in SPLITS
    }
    splits = {split: totals(found) for split, found in shards.items()}
    lacking = _lacking(splits, records, recipe)
    if lacking is not None:
        workshop.discard()
        raise DataError(lacking)
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": DOCUMENTS_KIND,
        "tokenizer_sha256": tokenizer.sha256,
        "vocabulary": tokenizer.vocabulary,
        "special_tokens": tokenizer.special.to_manifest(),
        "splits": splits,
        "sources": _sources(plan, records),
        "split_rule": (
            "a document is validation if SHA-256('split:' + id), as a fraction, is < "
            f"{recipe['validation']}"
        ),
        "dedup": {
            **recipe["dedup"],
            "duplicates_removed": sum(record.duplicates for record in records),
        },
        "skipped": [bad for record in records for bad in record.bad],
        "recipe": recipe,
    }
    counts = _npy(_token_counts(workshop, len(records), tokenizer.vocabulary))
    text = (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()
    for split, found in shards.items():
        if not found:
            continue
        directory = workshop.root / split
        lengths = {
            "format_version": LENGTHS_VERSION,
            "columns": list(LENGTH_COLUMNS),
            "shards": [shard.lengths for shard in found],
        }
        index = {"version": 2, "shards": [shard.index for shard in found]}
        workshop.write(directory / TOKENIZER_NAME, tokenizer.content)
        workshop.write(directory / TOKEN_COUNTS_NAME, counts)
        workshop.write(directory / MANIFEST_NAME, text)
        workshop.write_json(directory / LENGTHS_NAME, lengths)
        workshop.write(directory / INDEX_NAME, json.dumps(index, sort_keys=True).encode())
    workshop.write(workshop.root / TOKENIZER_NAME, tokenizer.content)
    workshop.write(workshop.root / TOKEN_COUNTS_NAME, counts)
    workshop.end(manifest)
    return manifest


def totals(shards: Sequence[ShardRecord]) -> dict[str, int]:
    """What the manifest says of shards."""
    sums = [sum(shard.lengths["totals"][c] for shard in shards) for c in range(len(LENGTH_COLUMNS))]
    documents = sum(shard.lengths["documents"] for shard in shards)
    return {
        "documents": documents,
        **dict(zip(LENGTH_COLUMNS, sums, strict=True)),
        "bytes": sum(shard.num_bytes for shard in shards),
        "samples": documents,
    }


def _sources(plan: BuildPlan, records: Sequence[PartRecord]) -> list[dict[str, Any]]:
    described: list[dict[str, Any]] = []
    for number, source in enumerate(plan.sources):
        of_it = [record for record in records if plan.parts[record.part].source == number]
        splits = {
            split: totals([shard for record in of_it for shard in record.shards[split]])
            for split in SPLITS
        }
        described.append(
            {
                **source.model_dump(exclude={"left_out"}),
                "left_out_files": source.left_out,
                "documents": sum(split["documents"] for split in splits.values()),
                "tokens": sum(split["tokens"] for split in splits.values()),
                "duplicates_removed": sum(record.duplicates for record in of_it),
                "skipped": sum(len(record.bad) for record in of_it),
                "splits": splits,
            }
        )
    return described


def _lacking(
    splits: Mapping[str, Mapping[str, int]],
    records: Sequence[PartRecord],
    recipe: Mapping[str, Any],
) -> str | None:
    """Which documents a corpus lacks, and what to do; None if it has all splits."""
    documents = sum(split["documents"] for split in splits.values())
    if documents == 0:
        return "No document is left; look at what was skipped. What was built is removed."
    for split, numbers in splits.items():
        if numbers["documents"] == 0 and not (split == "validation" and recipe["validation"] == 0):
            share = _working_share(records)
            proposed = "" if share is None else f"--validation {share:g}, or with "
            return (
                f"Of {counted(documents, 'document')} none falls into {split} with --validation "
                f"{recipe['validation']}. What was built is removed: run again with {proposed}"
                "--validation 0 for no validation split."
            )
    return None


def _working_share(records: Sequence[PartRecord]) -> float | None:
    """A share of validation with which documents fall into both splits."""
    drawn = [record.drawn for record in records if record.drawn is not None]
    if not drawn:
        return None
    low, high = min(low for low, _ in drawn), max(high for _, high in drawn)
    return next((share for share in _SHARES if low < share <= high), None)


def _token_counts(workshop: Workshop, parts: int, vocabulary: int) -> Any:
    counts = np.zeros(vocabulary, dtype=np.int64)
    for number in range(parts):
        data = workshop.read(workshop.working / PARTS / counts_name(number))
        assert data is not None, "written before the part's record"
        counts += np.load(io.BytesIO(data), allow_pickle=False)
    return counts


def _npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
