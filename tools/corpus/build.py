"""Builds a corpus of documents: sources to parts to shards, on all cores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from tools.corpus import duplicates, inputs, reading
from tools.corpus.duplicates import Dedup
from tools.corpus.encoding import paragraphs
from tools.corpus.entries import Entry, Fields, TextPiece
from tools.corpus.ids import require_unique
from tools.corpus.made import Maker
from tools.corpus.manifest import FORMAT_VERSION, finish
from tools.corpus.part import PartRecord, PartSetup, record_name, require_few_bad, split_of
from tools.corpus.plan import BuildPlan, Slice, Source, cut, part_size, survey
from tools.corpus.pool import spread
from tools.corpus.progress import Bar, busy
from tools.corpus.reading import PartReader
from tools.corpus.tokenizer import (
    DEFAULT_VOCABULARY,
    TOKENIZER_NAME,
    CorpusTokenizer,
    check_vocabulary,
)
from tools.corpus.words import counted
from tools.corpus.workshop import LICENCES, PARTS, Workshop
from train.errors import DataError

DEFAULT_VALIDATION: Final = 0.005
DEFAULT_SHARD_BYTES: Final = 1 << 26
TOKENIZER_TEXT_BYTES: Final = 64 << 20
"""Text that a tokenizer is trained on, at most."""
_PLAN: Final = "plan.json"
_MADE: Final = "made.jsonl"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What corpus is wanted.

    Attributes:
        sources: files, directories, patterns or URLs, each perhaps as `name=path`.
        made: documents that come before those of the sources; None for none.
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

    sources: Sequence[str] = ()
    made: Maker | None = None
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


def build(out: str, request: Request, *, console: Console) -> dict[str, Any]:
    """Build a corpus, or what is missing of it.

    Args:
        out: directory or URL.
        request: what is wanted.
        console: where progress and warnings are shown.

    Returns:
        The manifest.

    Raises:
        DataError: another corpus is there, or this one cannot be built. Parts that are finished
            stay, and the same request goes on from them; before any is, another may begin.
    """
    _require_sound(request)
    workshop = Workshop(out)
    with busy(console, "looking at the sources"):
        surveyed = survey(request.sources, request.licences)
        if request.made is not None:
            surveyed.insert(0, (_to_be_made(request.made), []))
    given = _given_tokenizer(request)
    part_bytes = request.part_bytes or part_size(source for source, _ in surveyed)
    recipe = _recipe(request, [source for source, _ in surveyed], given, part_bytes)
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
            plan = _plan(workshop, surveyed, request, part_bytes, console)
        finished = _finished(workshop, plan)
        if is_resumed:
            console.print(
                f"{out}: going on; {len(finished):,} of {counted(len(plan.parts), 'part')} "
                f"{'is' if len(finished) == 1 else 'are'} finished already",
                markup=False,
                soft_wrap=True,
            )
        tokenizer = given or _trained(workshop, plan, request, console)
        if request.dedup.method is not None:
            _seek_duplicates(workshop, plan, request, console)
        records = _parts(workshop, plan, request, tokenizer, finished, console)
        if request.fields.id is not None:
            require_unique(workshop, parts=len(plan.parts), field=request.fields.id)
        return finish(workshop, plan=plan, records=records, tokenizer=tokenizer, recipe=recipe)


def _require_sound(request: Request) -> None:
    if not 0 <= request.validation < 1:
        raise DataError(f"--validation {request.validation} is not a share from 0 to below 1.")
    if request.workers < 1:
        raise DataError(f"--workers {request.workers}: give 1 or more.")
    # Offsets in a shard have 32 bits.
    if not 1 <= request.shard_bytes < 2**31:
        raise DataError("--shard-mebibytes must be above 0 and below 2048.")
    if not 0 < request.dedup.threshold <= 1:
        raise DataError(
            f"--dedup-threshold {request.dedup.threshold} is not above 0 and at most 1."
        )
    if not 16 <= request.dedup.permutations <= 1024:
        raise DataError(f"--dedup-permutations {request.dedup.permutations}: give 16 to 1024.")
    if request.skip_bad < 0:
        raise DataError(f"--skip-bad {request.skip_bad}: give 0 or more.")


def _recipe(
    request: Request, sources: Sequence[Source], given: CorpusTokenizer | None, part_bytes: int
) -> dict[str, Any]:
    """All that the result depends on."""
    trained = {"trained_with_vocabulary": request.vocabulary or DEFAULT_VOCABULARY}
    return {
        "format_version": FORMAT_VERSION,
        "sources": [source.model_dump(exclude={"left_out", "made_of"}) for source in sources],
        "tokenizer": trained if given is None else {"sha256": given.sha256},
        "text_field": request.fields.text,
        "id_field": request.fields.id,
        "validation": request.validation,
        "shard_bytes": request.shard_bytes,
        "part_bytes": part_bytes,
        "media": request.has_media,
        "dedup": request.dedup.to_recipe(),
    }


def _given_tokenizer(request: Request) -> CorpusTokenizer | None:
    if request.tokenizer is not None:
        given = CorpusTokenizer.from_file(request.tokenizer)
    elif request.tokenizer_of is not None:
        path = f"{request.tokenizer_of.rstrip('/')}/{TOKENIZER_NAME}"
        given = CorpusTokenizer.from_content(inputs.content(path), name=path)
    else:
        check_vocabulary(request.vocabulary or DEFAULT_VOCABULARY)
        return None
    if request.vocabulary not in (None, given.vocabulary):
        raise DataError(
            f"The tokenizer has {given.vocabulary} entries, not {request.vocabulary}; leave out "
            "--vocabulary."
        )
    return given


def _to_be_made(made: Maker) -> Source:
    """A source whose documents are not there yet."""
    return Source(
        name=made.name,
        path="",
        licences=[],
        kind="made",
        files=0,
        bytes=0,
        identity=made.identity,
        left_out={},
    )


def _plan(
    workshop: Workshop,
    surveyed: list[tuple[Source, list[Slice]]],
    request: Request,
    part_bytes: int,
    console: Console,
) -> BuildPlan:
    """The plan of an earlier run, or a new one."""
    path, records = workshop.working / _PLAN, workshop.scratch / _MADE
    data = workshop.read(path)
    if request.made is not None and (data is None or not records.exists()):
        with busy(console, "making documents"):
            made = request.made.write(
                records, report=lambda told: console.print(told, markup=False, soft_wrap=True)
            )
        for name, text in made.licence_texts.items():
            workshop.write(workshop.root / LICENCES / f"{name}.txt", text.encode())
        size = records.stat().st_size
        source = surveyed[0][0].model_copy(
            update={"licences": made.licences, "made_of": made.described}
        )
        whole = Slice(path=str(records), name=_MADE, form="made", file_bytes=size, num_bytes=size)
        surveyed[0] = source, [whole]
    if data is not None:
        return BuildPlan.model_validate_json(data)
    has_media = request.has_media or any(
        reading.has_media(piece, request.fields) for _, slices in surveyed for piece in slices
    )
    plan = cut(surveyed, part_bytes=part_bytes, has_media=has_media)
    workshop.write(path, plan.model_dump_json().encode())
    return plan


def _trained(
    workshop: Workshop, plan: BuildPlan, request: Request, console: Console
) -> CorpusTokenizer:
    """A tokenizer trained on the beginning of every part, now or by an earlier run."""
    path = workshop.working / TOKENIZER_NAME
    content = workshop.read(path)
    if content is not None:
        return CorpusTokenizer.from_content(content, name=str(path))
    with busy(console, "training the tokenizer"):
        trained = CorpusTokenizer.train(
            _sample(plan, request), vocabulary=request.vocabulary or DEFAULT_VOCABULARY
        )
    workshop.write(path, trained.content)
    return trained


def _sample(plan: BuildPlan, request: Request) -> Any:
    share = math.ceil(TOKENIZER_TEXT_BYTES / len(plan.parts))
    for part in plan.parts:
        left = share
        source = plan.sources[part.source].name
        for entry in PartReader(part, source=source, fields=request.fields):
            if not isinstance(entry, Entry):
                continue
            if (entry.split or split_of(entry.id, request.validation)) != "train":
                continue
            for piece in entry.pieces:
                if isinstance(piece, TextPiece):
                    yield from paragraphs(piece.text)
            left -= entry.num_bytes
            if left <= 0:
                break


def _seek_duplicates(
    workshop: Workshop, plan: BuildPlan, request: Request, console: Console
) -> None:
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
        fields=request.fields,
        dedup=request.dedup,
        skip_bad=request.skip_bad,
    )
    total = sum(plan.parts[number].num_bytes for number in missing)
    bad: list[str] = []
    with Bar(console, "seeking duplicates", total_bytes=total) as bar:
        for _, found in spread(missing, setup, workers=request.workers, report=bar):
            bad += found
            require_few_bad(bad, request.skip_bad)
    with busy(console, "comparing documents"):
        duplicates.decide(workshop, parts=len(plan.parts), dedup=request.dedup)


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
    request: Request,
    tokenizer: CorpusTokenizer,
    finished: Mapping[int, PartRecord],
    console: Console,
) -> list[PartRecord]:
    """Build the parts that are not built yet."""
    records = dict(finished)
    bad = [text for record in records.values() for text in record.bad]
    require_few_bad(bad, request.skip_bad)
    setup = PartSetup(
        out=workshop.out,
        plan=plan,
        tokenizer=tokenizer.content,
        fields=request.fields,
        validation=request.validation,
        shard_bytes=request.shard_bytes,
        skip_bad=request.skip_bad,
    )
    missing = [number for number in range(len(plan.parts)) if number not in records]
    # The largest first, so that none of them keeps one process busy when all others are done.
    missing.sort(key=lambda number: -plan.parts[number].num_bytes)
    total = sum(plan.parts[number].num_bytes for number in missing)
    with Bar(console, "writing", total_bytes=total) as bar:
        for number, record in spread(missing, setup, workers=request.workers, report=bar):
            records[number] = record
            bad += record.bad
            require_few_bad(bad, request.skip_bad)
    for text in bad:
        console.print(f"skipped {text}", style="yellow", markup=False, soft_wrap=True)
    return [records[number] for number in range(len(plan.parts))]
