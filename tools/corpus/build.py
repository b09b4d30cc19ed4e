"""Builds a corpus of documents: sources to parts to shards, on all cores."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
from rich.console import Console

from tools.corpus import duplicates, inputs, reading, slurm
from tools.corpus.digests import digest, gathered, located, repeats
from tools.corpus.left_out import LeftOut
from tools.corpus.made import Maker
from tools.corpus.manifest import finish
from tools.corpus.part import BadList, Job, PartBuilder, PartRecord, split_of
from tools.corpus.plan import BuildPlan, Slice, Source, cut, part_size, survey
from tools.corpus.pool import spread
from tools.corpus.progress import bar
from tools.corpus.reading import none_asked_for
from tools.corpus.request import Request
from tools.corpus.tokenizer import TOKENIZER_NAME, CorpusTokenizer
from tools.corpus.words import counted
from tools.corpus.workshop import FINGERPRINTS, IDS, LICENCES, PAIRS, RECORD, Workshop, differences
from tools.progress import busy
from train.data.segments import TextSegment, paragraphs
from train.errors import DataError, UserError

TOKENIZER_TEXT_BYTES: Final = 64 << 20
"""Text that a tokenizer is trained on, at most."""
_PLAN: Final = "plan.json"
_MADE: Final = "made.jsonl"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is asked for, before anything is done.

    Attributes:
        workshop: where the corpus is to come to be.
        surveyed: sources, and their files.
        given: the tokenizer, unless it is trained.
        recipe: all that the result depends on.
    """

    workshop: Workshop
    surveyed: list[tuple[Source, list[Slice]]]
    given: CorpusTokenizer | None
    recipe: dict[str, Any]


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
        InUseError: another process builds there.
        StorageError: a store refuses, or does not answer.
    """

    def report(told: str) -> None:
        console.print(told, markup=False, highlight=False, soft_wrap=True)

    asked = _asked(out, request, console)
    workshop, given, recipe = asked.workshop, asked.given, asked.recipe
    surveyed = asked.surveyed
    sources = [source for source, _ in surveyed]
    with inputs.named(out), workshop.lock() as lease:
        if request.array is not None:
            request.array.clear(workshop)
        manifest = workshop.begin(recipe, report=report)
        if manifest is not None:
            report(f"{out} is already built")
            return manifest
        for source in sources:
            if source.left_out:
                report(f"{source.name}: left out are {LeftOut(source.left_out)}")
        if given is not None and (lost := given.lost()):
            report(
                f"{request.tokenizer} does not read back {', '.join(lost)}: what that changes is "
                "counted"
            )
        plan = _stored_plan(workshop)
        if plan is not None:
            done, parts = len(workshop.noted(RECORD)), counted(len(plan.parts), "part")
            are = "is" if done == 1 else "are"
            report(f"{out}: going on; {done:,} of {parts} {are} finished already")
        else:
            if request.made is not None:
                with busy(console, "making documents"):
                    surveyed[0] = _made(workshop, sources[0], request.made, report)
            with busy(console, "cutting the sources into parts"):
                plan = _new_plan(workshop, surveyed, request, recipe["part_bytes"])
        # Whoever works beside needs no maker, which may hold what does not travel.
        job = Job(workshop=workshop, plan=plan, request=replace(request, made=None))
        tokenizer = given or _trained(job, console)
        if request.dedup.method is not None:
            _seek_duplicates(job, console)
        records = _records(job, tokenizer, console)
        if request.fields.id is not None:
            _require_unique(job, request.fields.id)
        if request.array is not None:
            _require_unchanged(out, request, recipe)
        lease.check()
        return finish(job, records=records, tokenizer=tokenizer, recipe=recipe)


def build_share(out: str, request: Request, *, task: int, console: Console) -> None:
    """Do what falls to a task of the array of a build, which `request` is that of.

    Raises:
        DataError: the build is of other arguments or inputs by now, or a part cannot be built.
        StorageError: a store refuses, or does not answer.
    """
    try:
        asked = _asked(out, request, console)
        workshop = asked.workshop
        workshop.join(asked.recipe)
        plan = _stored_plan(workshop)
        assert plan is not None, "it is written before an array is submitted"
        job = Job(workshop=workshop, plan=plan, request=replace(request, made=None, array=None))
        kind, numbers = slurm.share(workshop, task)
        tokenizer = asked.given or _trained(job, console)
        for _ in _each(job, kind, tokenizer, console, numbers):
            pass
        shutil.rmtree(workshop.scratch, ignore_errors=True)
    except UserError as error:
        slurm.tell_fault(Workshop(out), error)
        raise


def _asked(out: str, request: Request, console: Console) -> _Asked:
    """Look at what is asked for.

    Raises:
        DataError: a source or the tokenizer cannot be read, or two sources have one name.
    """
    with busy(console, "looking at the sources"):
        surveyed = survey(request.sources, request.licences)
        if request.made is not None:
            for name in sorted({*request.made.names} & {source.name for source, _ in surveyed}):
                raise DataError(
                    f"Two sources are called {name}; give one another name, as in `other={name}`."
                )
            made = Source(name=request.made.name, kind="made", identity=request.made.identity)
            surveyed.insert(0, (made, []))
    sources = [source for source, _ in surveyed]
    given = request.given_tokenizer()
    described = [
        source.model_dump(exclude={"left_out", "made_of", "payloads"}) for source in sources
    ]
    return _Asked(
        workshop=Workshop(out),
        surveyed=surveyed,
        given=given,
        recipe=request.recipe(described, given, request.part_bytes or part_size(sources)),
    )


def _require_unchanged(out: str, request: Request, recipe: Mapping[str, Any]) -> None:
    """Check that no source has changed while tasks read it, hours perhaps after each other.

    Raises:
        DataError: one has.
    """
    now = _asked(out, request, Console(quiet=True)).recipe
    if found := differences(recipe, now):
        raise DataError(
            f"while {out} was built, {'; '.join(found)}: its parts do not belong together. Delete "
            "it, and build again."
        )


def _made(
    workshop: Workshop, source: Source, made: Maker, report: Callable[[str], None]
) -> tuple[Source, list[Slice]]:
    """A source whose documents are there: whoever goes on with the build finds them beside it."""
    found = made.make(report)
    records = workshop.scratch / _MADE
    records.parent.mkdir(parents=True, exist_ok=True)
    with records.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in found.records)
    size = records.stat().st_size
    if not size:
        raise DataError("The sources hold no English prose; name others.")
    workshop.deliver(workshop.working, _MADE, records)
    for name, text in found.licence_texts.items():
        workshop.write(workshop.root / LICENCES / f"{name}.txt", text.encode())
    path = str(workshop.working / _MADE)
    whole = Slice(path=path, name=_MADE, form="made", file_bytes=size, num_bytes=size)
    told = {
        "licences": found.licences, "made_of": found.described, "left_out": found.left_out,
    }  # fmt: skip
    return source.model_copy(update=told), [whole]


def _new_plan(
    workshop: Workshop,
    surveyed: list[tuple[Source, list[Slice]]],
    request: Request,
    part_bytes: int,
) -> BuildPlan:
    has_media = request.has_media or any(
        reading.has_media(piece, request.fields) for _, slices in surveyed for piece in slices
    )
    plan = cut(surveyed, part_bytes=part_bytes, has_media=has_media)
    workshop.write(workshop.working / _PLAN, plan.model_dump_json().encode())
    return plan


def _stored_plan(workshop: Workshop) -> BuildPlan | None:
    """The plan of an earlier run."""
    data = workshop.read(workshop.working / _PLAN)
    if data is None:
        return None
    try:
        plan = BuildPlan.model_validate_json(data)
    except ValueError as error:
        raise DataError(
            f"{workshop.out} was begun by another version of this program, or its plan is damaged; "
            "delete it, and build again."
        ) from error
    for piece in (piece for part in plan.parts for piece in part.slices):
        if piece.form == "made":  # what was begun may have been moved
            piece.path = str(workshop.working / _MADE)
    return plan


def _trained(job: Job, console: Console) -> CorpusTokenizer:
    """A tokenizer trained on the beginning of every part, now or by an earlier run."""
    path = job.workshop.working / TOKENIZER_NAME
    content = job.workshop.read(path)
    if content is None:
        with busy(console, "training the tokenizer"):
            content = CorpusTokenizer.train(
                _sample(job), vocabulary=job.request.trained_vocabulary
            ).content
        job.workshop.write(path, content)
    return CorpusTokenizer.from_content(content, name=str(path))


def _sample(job: Job) -> Iterator[str]:
    numbers = range(len(job.plan.parts))
    others: set[str] = set()
    documents = 0
    for number in numbers:
        left = math.ceil(TOKENIZER_TEXT_BYTES / len(numbers))
        reader = job.read(number)
        for entry in reader:
            documents += 1
            if (entry.split or split_of(entry.id, job.request.validation)) != "train":
                continue
            for piece in entry.pieces:
                if isinstance(piece, TextSegment):
                    yield from paragraphs(piece.text)
            left -= entry.num_bytes
            if left <= 0:
                break
        others |= reader.others
    if others and not documents:
        raise DataError(none_asked_for(others))


def _each(
    job: Job,
    kind: str,
    tokenizer: CorpusTokenizer | None,
    console: Console,
    numbers: Iterable[int] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Do with parts, or buckets, what leaves a note of some kind, unless it is noted.

    Args:
        job: of which they are.
        kind: of the notes.
        tokenizer: to encode with, where that is what is done.
        console: where progress is shown.
        numbers: of parts or buckets; None for all.

    Yields:
        Each number and what came of it; None where a task of an array did it.
    """
    description, worker = _worker(job, kind, tokenizer)
    done = job.workshop.noted(kind)
    weights = dict(enumerate(part.num_bytes for part in job.plan.parts))
    if kind == PAIRS:
        weights = dict.fromkeys(range(duplicates.buckets(job)), duplicates.size_of_bucket(job))
    sizes = {n: weights[n] for n in (weights if numbers is None else numbers) if n not in done}
    # The largest first, so that none of them keeps one process busy when all others are done.
    missing = sorted(sizes, key=lambda number: -sizes[number])
    workers, array = job.request.workers, job.request.array
    with bar(console, description, total_bytes=sum(sizes.values())) as report:
        if array is None:
            yield from spread(missing, worker, workers=workers, report=report)
            return
        for number in array.spread(job.workshop, kind, missing, workers=workers):
            report(sizes[number], 0, 0)
            yield number, None


def _worker(job: Job, kind: str, tokenizer: CorpusTokenizer | None) -> tuple[str, Any]:
    """What leaves notes of a kind: how it is called, and what makes it in each process."""
    if kind == FINGERPRINTS:
        return "seeking duplicates", partial(duplicates.Fingerprinter, job)
    if kind == PAIRS:
        return "pairing documents", partial(duplicates.Pairing, job)
    assert kind == RECORD, kind
    assert tokenizer is not None, "what is written is encoded"
    return "writing", partial(PartBuilder, job, tokenizer.content)


def _seek_duplicates(job: Job, console: Console) -> None:
    """Note which documents stay; parts that an earlier run looked at are not read again."""
    bad = BadList(job.request.skip_bad)
    for _, found in _each(job, FINGERPRINTS, None, console):
        bad.add(*(found or ()))
    if job.request.dedup.method == "minhash":
        for _ in _each(job, PAIRS, None, console):
            pass
    with busy(console, "comparing documents"):
        duplicates.decide(job)


def _records(job: Job, tokenizer: CorpusTokenizer, console: Console) -> list[PartRecord]:
    """Build the parts that are not built yet."""

    def noted(number: int) -> PartRecord:
        return PartRecord.model_validate_json(job.workshop.read_note(RECORD, number))

    records = {number: noted(number) for number in sorted(job.workshop.noted(RECORD))}
    bad = BadList(job.request.skip_bad)
    bad.add(*(text for record in records.values() for text in record.bad))
    for number, record in _each(job, RECORD, tokenizer, console):
        records[number] = record or noted(number)
        bad.add(*records[number].bad)
    for text in bad.found:
        console.print(f"skipped {text}", style="yellow", markup=False, soft_wrap=True)
    return [records[number] for number in sorted(records)]


def _require_unique(job: Job, field: str) -> None:
    """Check that no two documents have the id that a column gives."""

    def ids(part: int) -> list[str]:
        return json.loads(job.workshop.read_note(IDS, part))

    parts = range(len(job.plan.parts))
    digests = [gathered(digest(name.encode()) for name in ids(part)) for part in parts]
    repeated, _ = repeats(np.concatenate(digests))
    if not len(repeated):
        return
    part, place = located(repeated[0], [len(of_part) for of_part in digests])
    raise DataError(
        f"{len(repeated):,} documents have the id of another, such as {ids(part)[place]}: "
        f"`{field}` does not tell them apart. Delete what was built, and build without --id-field "
        "or with another."
    )
