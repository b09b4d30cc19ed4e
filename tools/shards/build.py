"""Builds a corpus of documents: sources to parts to shards, on all cores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from tools.corpus.place import TOKENIZER_NAME
from tools.corpus.tokenizer import DEFAULT_VOCABULARY, CorpusTokenizer, check_vocabulary
from tools.shards import duplicates, inputs, reading
from tools.shards.duplicates import Dedup
from tools.shards.encoding import paragraphs
from tools.shards.entries import Entry, Fields, TextPiece
from tools.shards.ids import require_unique
from tools.shards.manifest import FORMAT_VERSION, finish
from tools.shards.part import PartRecord, PartSetup, record_name, require_few_bad, split_of
from tools.shards.plan import BuildPlan, Source, cut, part_size, survey
from tools.shards.pool import spread
from tools.shards.progress import Bar, busy
from tools.shards.reading import PartReader
from tools.shards.words import counted
from tools.shards.workshop import PARTS, Workshop
from train.errors import DataError

DEFAULT_VALIDATION: Final = 0.005
DEFAULT_SHARD_BYTES: Final = 1 << 26
TOKENIZER_TEXT_BYTES: Final = 64 << 20
"""Text that a tokenizer is trained on, at most."""
_PLAN: Final = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What corpus is wanted.

    Attributes:
        sources: files, directories, patterns or URLs, each perhaps as `name=path`.
        licences: each `name=SPDX`.
        tokenizer: a tokenizer.json to use.
        tokenizer_of: a corpus whose tokenizer to use.
        vocabulary: entries of a tokenizer that is trained here, where neither is given.
        fields: columns of tables.
        validation: share of documents.
        shard_bytes: limit of a shard.
        part_bytes: input handled at once; None to choose by the size of the sources.
        has_media: store payloads whatever the first rows show.
        skip_bad: how many documents may be bad.
        workers: processes.
        dedup: which documents are left out because an earlier one is like them.
    """

    sources: Sequence[str]
    licences: Sequence[str] = ()
    tokenizer: Path | None = None
    tokenizer_of: str | None = None
    vocabulary: int | None = None
    fields: Fields = field(default_factory=Fields)
    validation: float = DEFAULT_VALIDATION
    shard_bytes: int = DEFAULT_SHARD_BYTES
    part_bytes: int | None = None
    has_media: bool = False
    skip_bad: int = 0
    workers: int = 1
    dedup: Dedup = field(default_factory=Dedup)


def build(out: str, order: Order, *, console: Console) -> dict[str, Any]:
    """Build a corpus, or what is missing of it.

    Args:
        out: directory or URL.
        order: what is wanted.
        console: where progress and warnings are shown.

    Returns:
        The manifest.

    Raises:
        DataError: another corpus is there, or this one cannot be built. Parts that are finished
            stay, and the same order goes on from them; before any is, another order may begin.
    """
    _require_sound(order)
    workshop = Workshop(out)
    with busy(console, "looking at the sources"):
        surveyed = survey(order.sources, order.licences)
    given = _given_tokenizer(order)
    part_bytes = order.part_bytes or part_size(source for source, _ in surveyed)
    recipe = _recipe(order, [source for source, _ in surveyed], given, part_bytes)
    with workshop.lock():
        if workshop.give_way(recipe):
            console.print(
                f"{out}: what was begun with other arguments or inputs is removed; no part of it "
                "was finished",
                markup=False,
                soft_wrap=True,
            )
        manifest = workshop.finished(recipe)
        if manifest is not None:
            console.print(f"{out} is already built", markup=False, soft_wrap=True)
            workshop.clear()
            return manifest
        is_resumed = workshop.is_begun
        workshop.begin(recipe)
        for source, _ in surveyed:
            for suffix, count in source.left_out.items():
                console.print(f"{source.name}: {count:,} files left out ({suffix})", markup=False)
        with busy(console, "cutting the sources into parts"):
            plan = _plan(workshop, surveyed, order, part_bytes)
        finished = _finished(workshop, plan)
        if is_resumed:
            console.print(
                f"{out}: going on; {len(finished):,} of {counted(len(plan.parts), 'part')} "
                f"{'is' if len(finished) == 1 else 'are'} finished already",
                markup=False,
                soft_wrap=True,
            )
        tokenizer = given or _trained(workshop, plan, order, console)
        if order.dedup.method is not None:
            _seek_duplicates(workshop, plan, order, console)
        records = _parts(workshop, plan, order, tokenizer, finished, console)
        if order.fields.id is not None:
            require_unique(workshop, parts=len(plan.parts), field=order.fields.id)
        return finish(workshop, plan=plan, records=records, tokenizer=tokenizer, recipe=recipe)


def _require_sound(order: Order) -> None:
    if not 0 <= order.validation < 1:
        raise DataError(f"--validation {order.validation} is not a share from 0 to below 1.")
    if order.workers < 1:
        raise DataError(f"--workers {order.workers}: give 1 or more.")
    # Offsets in a shard have 32 bits.
    if not 1 <= order.shard_bytes < 2**31:
        raise DataError("--shard-mebibytes must be above 0 and below 2048.")
    if not 0 < order.dedup.threshold <= 1:
        raise DataError(f"--dedup-threshold {order.dedup.threshold} is not above 0 and at most 1.")
    if not 16 <= order.dedup.permutations <= 1024:
        raise DataError(f"--dedup-permutations {order.dedup.permutations}: give 16 to 1024.")
    if order.skip_bad < 0:
        raise DataError(f"--skip-bad {order.skip_bad}: give 0 or more.")


def _recipe(
    order: Order, sources: Sequence[Source], given: CorpusTokenizer | None, part_bytes: int
) -> dict[str, Any]:
    """All that the result depends on."""
    trained = {"trained_with_vocabulary": order.vocabulary or DEFAULT_VOCABULARY}
    return {
        "format_version": FORMAT_VERSION,
        "sources": [source.model_dump(exclude={"left_out"}) for source in sources],
        "tokenizer": trained if given is None else {"sha256": given.sha256},
        "text_field": order.fields.text,
        "id_field": order.fields.id,
        "validation": order.validation,
        "shard_bytes": order.shard_bytes,
        "part_bytes": part_bytes,
        "media": order.has_media,
        "dedup": order.dedup.to_recipe(),
    }


def _given_tokenizer(order: Order) -> CorpusTokenizer | None:
    if order.tokenizer is not None:
        given = CorpusTokenizer.from_file(order.tokenizer)
    elif order.tokenizer_of is not None:
        path = f"{order.tokenizer_of.rstrip('/')}/{TOKENIZER_NAME}"
        given = CorpusTokenizer.from_content(inputs.content(path), name=path)
    else:
        check_vocabulary(order.vocabulary or DEFAULT_VOCABULARY)
        return None
    if order.vocabulary not in (None, given.vocabulary):
        raise DataError(
            f"The tokenizer has {given.vocabulary} entries, not {order.vocabulary}; leave out "
            "--vocabulary."
        )
    return given


def _plan(workshop: Workshop, surveyed: Any, order: Order, part_bytes: int) -> BuildPlan:
    """The plan of an earlier run, or a new one."""
    path = workshop.working / _PLAN
    data = workshop.read(path)
    if data is not None:
        return BuildPlan.model_validate_json(data)
    has_media = order.has_media or any(
        reading.has_media(piece, order.fields) for _, slices in surveyed for piece in slices
    )
    plan = cut(surveyed, part_bytes=part_bytes, has_media=has_media)
    workshop.write(path, plan.model_dump_json().encode())
    return plan


def _trained(
    workshop: Workshop, plan: BuildPlan, order: Order, console: Console
) -> CorpusTokenizer:
    """A tokenizer trained on the beginning of every part, now or by an earlier run."""
    path = workshop.working / TOKENIZER_NAME
    content = workshop.read(path)
    if content is not None:
        return CorpusTokenizer.from_content(content, name=str(path))
    with busy(console, "training the tokenizer"):
        trained = CorpusTokenizer.train(
            _sample(plan, order), vocabulary=order.vocabulary or DEFAULT_VOCABULARY
        )
    workshop.write(path, trained.content)
    return trained


def _sample(plan: BuildPlan, order: Order) -> Any:
    share = math.ceil(TOKENIZER_TEXT_BYTES / len(plan.parts))
    for part in plan.parts:
        left = share
        source = plan.sources[part.source].name
        for entry in PartReader(part, source=source, fields=order.fields):
            if not isinstance(entry, Entry) or split_of(entry.id, order.validation) != "train":
                continue
            for piece in entry.pieces:
                if isinstance(piece, TextPiece):
                    yield from paragraphs(piece.text)
            left -= entry.num_bytes
            if left <= 0:
                break


def _seek_duplicates(workshop: Workshop, plan: BuildPlan, order: Order, console: Console) -> None:
    """Say which documents stay; parts that were looked at by an earlier run are not read again."""
    there = set(workshop.names(workshop.working / duplicates.FINGERPRINTS))
    missing = [
        number
        for number in range(len(plan.parts))
        if duplicates.fingerprints_name(number) not in there
    ]
    setup = duplicates.FingerprintSetup(
        out=workshop.out,
        plan=plan,
        fields=order.fields,
        dedup=order.dedup,
        skip_bad=order.skip_bad,
    )
    total = sum(plan.parts[number].num_bytes for number in missing)
    bad: list[str] = []
    with Bar(console, "seeking duplicates", total_bytes=total) as bar:
        for _, found in spread(missing, setup, workers=order.workers, report=bar):
            bad += found
            require_few_bad(bad, order.skip_bad)
    with busy(console, "comparing documents"):
        duplicates.decide(workshop, parts=len(plan.parts), dedup=order.dedup)


def _finished(workshop: Workshop, plan: BuildPlan) -> dict[int, PartRecord]:
    """The parts that an earlier run built, by number."""
    records: dict[int, PartRecord] = {}
    there = set(workshop.names(workshop.working / PARTS))
    for number in range(len(plan.parts)):
        if record_name(number) in there:
            data = workshop.read(workshop.working / PARTS / record_name(number))
            assert data is not None
            records[number] = PartRecord.model_validate_json(data)
    return records


def _parts(
    workshop: Workshop,
    plan: BuildPlan,
    order: Order,
    tokenizer: CorpusTokenizer,
    finished: Mapping[int, PartRecord],
    console: Console,
) -> list[PartRecord]:
    """Build the parts that are not built yet."""
    records = dict(finished)
    bad = [text for record in records.values() for text in record.bad]
    require_few_bad(bad, order.skip_bad)
    setup = PartSetup(
        out=workshop.out,
        plan=plan,
        tokenizer=tokenizer.content,
        fields=order.fields,
        validation=order.validation,
        shard_bytes=order.shard_bytes,
        skip_bad=order.skip_bad,
    )
    missing = [number for number in range(len(plan.parts)) if number not in records]
    # The largest first, so that none of them keeps one process busy when all others are done.
    missing.sort(key=lambda number: -plan.parts[number].num_bytes)
    total = sum(plan.parts[number].num_bytes for number in missing)
    with Bar(console, "writing", total_bytes=total) as bar:
        for number, record in spread(missing, setup, workers=order.workers, report=bar):
            records[number] = record
            bad += record.bad
            require_few_bad(bad, order.skip_bad)
    for text in bad:
        console.print(f"skipped {text}", style="yellow", markup=False, soft_wrap=True)
    return [records[number] for number in range(len(plan.parts))]
