"""Finds documents that are like an earlier one: equal but for case and space, or nearly equal.

First every part's documents are reduced to fingerprints, in parallel; where nearly equal ones count
too, those that agree in some of their hashes are then paired, in parallel as well (`near`). Last
one process goes through these in the global order and says which documents stay. The split comes
after it, so that no document of validation has its like in training.
"""

import hashlib
import io
import shutil
import unicodedata

import numpy as np
import numpy.typing as npt

from tools.corpus.digests import digest, gathered, repeats
from tools.corpus.entries import Entry
from tools.corpus.part import BadList, Job
from tools.corpus.pool import Report
from tools.corpus.reading import PartReader
from tools.corpus.request import Dedup
from tools.corpus.workshop import FINGERPRINTS, KEEP, PAIRS, SIGNATURES, Workshop
from train.data.segments import MediaSegment, TextSegment


class Fingerprinter:
    """Reduces the documents of parts to fingerprints."""

    def __init__(self, job: Job) -> None:
        """Nothing is read yet."""
        self._job = job

    def __call__(self, number: int, report: Report) -> list[str]:
        """Note the fingerprints of a part.

        Returns:
            What is bad in it.

        Raises:
            DataError: more is bad than may be.
        """
        bad = BadList(self._job.request.skip_bad)
        entries = self._job.read(number, bad.add, report)
        content = io.BytesIO()
        if self._job.request.dedup.method == "minhash":
            np.savez(content, signatures=self._signed(number, entries))
        else:
            np.savez(content, digests=gathered(digest_of(entry) for entry in entries))
        self._job.workshop.note(FINGERPRINTS, number, content.getvalue())
        return bad.found

    def _signed(self, number: int, entries: PartReader) -> npt.NDArray[np.uint32]:
        """Signatures of a part; what else is written of them is whole once they are noted."""
        from tools.corpus import near  # here, because few seek what is nearly equal

        workshop = self._job.workshop
        scratch = workshop.scratch / f"{number:05}.signatures"
        shutil.rmtree(scratch, ignore_errors=True)
        signing = near.Signing(scratch, self._job.request.dedup)
        signing.sign(map(_compared, entries), part=number)
        for bucket in sorted(scratch.iterdir()):
            for file in bucket.iterdir():
                directory = workshop.working / SIGNATURES / bucket.name
                workshop.deliver(directory, file.name, file)
        shutil.rmtree(scratch)
        return signing.signatures


class Pairing:
    """Pairs the documents of all parts that agree in a bucket of their hashes."""

    def __init__(self, job: Job) -> None:
        """Nothing is read yet."""
        self._job = job

    def __call__(self, bucket: int, report: Report) -> None:
        """Note the pairs of a bucket."""
        from tools.corpus import near

        workshop, dedup = self._job.workshop, self._job.request.dedup
        scratch = workshop.scratch / f"{bucket:05}.pairs"
        signatures = workshop.fetched(SIGNATURES, near.directory_of(bucket))
        # DataTrove pairs what is there.
        wanted = {near.file_of(part) for part in range(len(self._job.plan.parts))}
        if lacking := wanted - {file.name for file in signatures.iterdir()}:
            raise workshop.lacking(f"{SIGNATURES}/{signatures.name}/{min(lacking)}")
        pairs = near.write_pairs(signatures.parent, scratch, dedup, bucket=bucket)
        workshop.note(PAIRS, bucket, pairs)
        if workshop.root.is_remote:
            shutil.rmtree(signatures)
        report(size_of_bucket(self._job), 0, 0)


def buckets(job: Job) -> int:
    """How many buckets the hashes of a document are in."""
    from tools.corpus import near

    return near.config_of(job.request.dedup).num_buckets


def size_of_bucket(job: Job) -> int:
    """What a bucket weighs in input, for progress."""
    return sum(part.num_bytes for part in job.plan.parts) // buckets(job)


def normalised(entry: Entry) -> str:
    """The text of a document without what makes no difference: case, space, ways to write é."""
    text = " ".join(piece.text for piece in entry.pieces if isinstance(piece, TextSegment))
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def digest_of(entry: Entry) -> bytes:
    """Equal for documents of equal text, and equal payloads, whatever their ids."""
    payloads = (piece.data for piece in entry.pieces if isinstance(piece, MediaSegment))
    whole = (b"\0" + hashlib.sha256(data).digest() for data in payloads)
    return digest(b"".join((normalised(entry).encode(), *whole)))


def _compared(entry: Entry) -> str | bytes:
    """What documents are near by; of those with payloads only equal ones are."""
    # "A photo of a dog" is written under many photos.
    return digest_of(entry) if entry.has_media else normalised(entry)


def decide(job: Job) -> None:
    """Note which documents of each part stay, unless an earlier run did."""
    workshop, dedup, parts = job.workshop, job.request.dedup, range(len(job.plan.parts))
    if workshop.noted(KEEP) == set(parts):
        return
    if dedup.method == "minhash":
        kept = _without_near(workshop, dedup, num_parts=len(parts))
    else:
        digests = [workshop.read_note(FINGERPRINTS, part)["digests"] for part in parts]
        keep = np.ones(sum(map(len, digests)), dtype=bool)
        keep[repeats(np.concatenate(digests))[0]] = False
        kept = np.split(keep, np.cumsum([len(of_part) for of_part in digests])[:-1])
    for part, of_part in enumerate(kept):
        workshop.note(KEEP, part, of_part)


def _without_near(
    workshop: Workshop, dedup: Dedup, *, num_parts: int
) -> list[npt.NDArray[np.bool_]]:
    """Which documents stay, by parts."""
    from tools.corpus import near

    buckets = range(near.config_of(dedup).num_buckets)
    clusters = near.Clusters(workshop.read_note(PAIRS, bucket) for bucket in buckets)
    candidates: list[npt.NDArray[np.uint32]] = []
    kept: list[npt.NDArray[np.bool_]] = []
    for part in range(num_parts):
        signatures = workshop.read_note(FINGERPRINTS, part)["signatures"]
        candidates.append(signatures[clusters.documents(part)])
        kept.append(np.ones(len(signatures), dtype=bool))
    for part, document in clusters.dropped(np.concatenate(candidates), dedup.threshold):
        kept[part][document] = False
    return kept
