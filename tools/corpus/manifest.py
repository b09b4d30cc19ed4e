"""Makes a corpus of finished parts: indexes, lengths, counts, and last the manifest."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from tools.corpus.left_out import LEFT_OUT_NAME, LeftOut, listed
from tools.corpus.part import Job, PartRecord
from tools.corpus.plan import BuildPlan, Source
from tools.corpus.reading import none_asked_for
from tools.corpus.request import FORMAT_VERSION
from tools.corpus.tokenizer import TOKENIZER_NAME, CorpusTokenizer, ReadBack
from tools.corpus.words import counted
from tools.corpus.workshop import COUNTS, SPLITS, as_json
from tools.corpus.writing import ShardRecord, npy
from train.data.corpus import TOKEN_COUNTS_NAME
from train.data.document import DOCUMENTS_KIND, LENGTH_COLUMNS, LENGTHS_NAME
from train.data.store.index import INDEX_NAME
from train.data.store.manifest import MANIFEST_NAME
from train.errors import DataError

LENGTHS_VERSION: Final = 1
_SHARES: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(tenths / 10 for tenths in range(1, 10)))
"""Of validation, to be proposed."""


def finish(
    job: Job,
    *,
    records: Sequence[PartRecord],
    tokenizer: CorpusTokenizer,
    recipe: Mapping[str, Any],
) -> dict[str, Any]:
    """Write all that lies beside the shards, and commit.

    Args:
        job: where the parts are.
        records: of all parts, in order.
        tokenizer: that they were encoded with.
        recipe: what was asked for.

    Returns:
        The manifest.

    Raises:
        DataError: a split holds no document. What was built is removed, because only other
            arguments can help.
    """
    workshop = job.workshop
    shards = {
        split: [shard for record in records for shard in record.shards[split]] for split in SPLITS
    }
    splits = {split: totals(found) for split, found in shards.items()}
    lacking = _lacking(splits, records, recipe)
    if lacking is not None:
        workshop.discard()
        raise DataError(lacking)
    left_out = {
        source.name: _left_out(source, [r for r in records if job.plan.parts[r.part].source == n])
        for n, source in enumerate(job.plan.sources)
    }
    read_back = ReadBack()
    for record in records:
        read_back.add(record.read_back)
    counts = np.zeros(tokenizer.vocabulary, dtype=np.int64)
    for record in records:
        counts += workshop.read_note(COUNTS, record.part)
    files = {
        f"{split}/{name}": content
        for split, found in shards.items()
        if found
        for name, content in {**_listings(found), TOKEN_COUNTS_NAME: npy(counts)}.items()
    }
    if named := listed(left_out):
        files[LEFT_OUT_NAME] = named
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": DOCUMENTS_KIND,
        "tokenizer_sha256": tokenizer.sha256,
        "vocabulary": tokenizer.vocabulary,
        "special_tokens": tokenizer.special.to_manifest(),
        "splits": splits,
        "sources": _sources(job.plan, records, left_out),
        "split_rule": (
            "a document is validation if SHA-256('split:' + id), as a fraction, is < "
            f"{recipe['validation']}"
        ),
        "dedup": {
            **recipe["dedup"],
            "duplicates_removed": sum(record.duplicates for record in records),
        },
        "skipped": [bad for record in records for bad in record.bad],
        "read_back": read_back.model_dump(),
        "recipe": recipe,
        # Of what lies beside the shards, whose own hashes are among it.
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    # In this order: with its manifest at the top the corpus is there.
    beside = {
        TOKENIZER_NAME: tokenizer.content,
        TOKEN_COUNTS_NAME: npy(counts),
        MANIFEST_NAME: as_json(manifest),
    }
    for split in filter(shards.get, shards):
        for name in (TOKENIZER_NAME, MANIFEST_NAME):
            workshop.write(workshop.root / split / name, beside[name])
    for name, content in files.items():
        workshop.write(workshop.root / name, content)
    for name, content in beside.items():
        workshop.write(workshop.root / name, content)
    workshop.clear()
    return manifest


def _listings(shards: Sequence[ShardRecord]) -> dict[str, bytes]:
    """The files that list the shards of a split."""
    lengths = {
        "format_version": LENGTHS_VERSION,
        "columns": list(LENGTH_COLUMNS),
        "shards": [shard.lengths for shard in shards],
    }
    index = {"version": 2, "shards": [shard.index for shard in shards]}
    return {
        LENGTHS_NAME: as_json(lengths),
        INDEX_NAME: json.dumps(index, sort_keys=True).encode(),
    }


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


def _left_out(source: Source, records: Sequence[PartRecord]) -> LeftOut:
    """What a source held that is not in the corpus."""
    left_out = LeftOut(source.left_out)
    for record in records:
        for name in record.empty:
            left_out.add("empty", name)
        for name in record.cut_short:
            left_out.add("cannot be read to its end", name)
    fetched = {path for record in records for path in record.fetched}
    missing = [path for path in source.payloads if path not in fetched]
    if missing and "://" not in missing[0]:  # a row may name a file by a link
        fetched = {os.path.realpath(path) for path in fetched}
        missing = [path for path in missing if os.path.realpath(path) not in fetched]
    for path in missing:
        left_out.add("named by no row", source.payloads[path])
    return left_out


def _sources(
    plan: BuildPlan, records: Sequence[PartRecord], left_out: Mapping[str, LeftOut]
) -> list[dict[str, Any]]:
    described: list[dict[str, Any]] = []
    for number, source in enumerate(plan.sources):
        of_it = [record for record in records if plan.parts[record.part].source == number]
        splits = {
            split: totals([shard for record in of_it for shard in record.shards[split]])
            for split in SPLITS
        }
        counts: list[Any] = [record.records for record in of_it]
        described.append(
            {
                **source.model_dump(exclude={"left_out", "payloads"}),
                "left_out_files": left_out[source.name].counts(),
                "records": None if None in counts else sum(counts),
                "documents": sum(split["documents"] for split in splits.values()),
                "tokens": sum(split["tokens"] for split in splits.values()),
                "duplicates_removed": sum(record.duplicates for record in of_it),
                "skipped": sum(len(record.bad) for record in of_it),
                "passed_over": sum(record.passed_over for record in of_it),
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
        others = sorted({value for record in records for value in record.others})
        if others:
            return f"{none_asked_for(others)} What was built is removed."
        return "No document is left; look at what was skipped. What was built is removed."
    validation = recipe["validation"]
    wanted = SPLITS if validation else ("train",)
    lacking = next((split for split in wanted if not splits[split]["documents"]), None)
    if lacking is None:
        return None
    # A share with which documents fall into both splits.
    drawn = [number for record in records for number in record.drawn or ()]
    shares = [share for share in _SHARES if drawn and min(drawn) < share <= max(drawn)]
    proposed = f"--validation {shares[0]:g}, or with " if shares else ""
    return (
        f"Of {counted(documents, 'document')} none falls into {lacking} with --validation "
        f"{validation}. What was built is removed: run again with {proposed}"
        "--validation 0 for no validation split."
    )
