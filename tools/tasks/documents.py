"""Documents of tasks, for a corpus that a model is tuned on."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tools.corpus.left_out import LeftOut
from tools.corpus.made import Made
from tools.tasks.build import MANIFEST_NAME, manifest_of
from train.data.document import MEDIA
from train.data.segments import MediaSegment, Segment
from train.errors import DataError
from train.tasks.fitting import Fitting
from train.tasks.protocol import Protocol
from train.tasks.reader import TaskReader
from train.tasks.task import Split

_SPLITS: Final[tuple[Split, ...]] = ("train", "validation")
_TOO_LONG: Final = "longer than a sequence"


@dataclass(frozen=True, kw_only=True)
class TaskDocuments:
    """Records of tasks as documents: contexts unscored, answers scored.

    Attributes:
        readers: of the tasks.
        protocol: which records, asked how.
        fitting: what the model has room for.
        tokenizer_sha256: of the corpus that the model was trained on.
        validation_records: of each task.
        leaves_out_long: whether records that have no room are left out, and told; else they are an
            error.
        seed: of what the protocol draws.
    """

    readers: Sequence[TaskReader]
    protocol: Protocol
    fitting: Fitting
    tokenizer_sha256: str
    validation_records: int
    leaves_out_long: bool
    seed: int = 0
    name: str = "tasks"

    @property
    def names(self) -> tuple[str, ...]:
        """None that other sources could have: tasks are built alone."""
        return ()

    @property
    def identity(self) -> str:
        """Of the tasks, their records, and how they are asked.

        Raises:
            DataError: records are missing.
        """
        known = [
            repr(self.protocol), self.fitting.span_tokens, self.fitting.sequence_tokens,
            self.tokenizer_sha256, self.validation_records, self.leaves_out_long, self.seed,
        ]  # fmt: skip
        found = hashlib.sha256(json.dumps(known).encode())
        for reader in self.readers:
            found.update(reader.task.model_dump_json().encode())
            for split in _SPLITS:
                for file in reader.files(split):
                    found.update(f"{file.stat().st_size} {file.stat().st_mtime_ns}".encode())
        return found.hexdigest()

    def make(self, report: Callable[[str], None]) -> Made:
        """Make the documents.

        Raises:
            DataError: a record does not fit its task; or, later, has no room.
        """
        described: list[dict[str, Any]] = []
        for reader in self.readers:
            manifest = manifest_of(reader.directory / MANIFEST_NAME) or {}
            sources = manifest.get("sources", [])
            licences = sorted({licence for each in sources for licence in each["licences"]})
            described.append(
                {"source": str(reader.directory), "name": reader.task.name, "licences": licences}
            )
        left_out = LeftOut()
        records = self._records(left_out, report)
        return Made(described=described, licence_texts={}, left_out=left_out, records=records)

    def _records(
        self, left_out: LeftOut, report: Callable[[str], None]
    ) -> Iterator[dict[str, Any]]:
        for reader in self.readers:
            num_shortened = num_records = 0
            for split in _SPLITS:
                for number, example in enumerate(
                    self.protocol.examples(reader, split, seed=self.seed)
                ):
                    if split == "validation" and number >= self.validation_records:
                        break
                    document = example.document()
                    answer = document[len(example.context) :]
                    try:
                        context, dropped = self.fitting(example.context, answer, name=example.id)
                    except DataError:
                        if not self.leaves_out_long:
                            raise
                        left_out.add(_TOO_LONG, example.id)
                        continue
                    num_records += 1
                    num_shortened += dropped > 0
                    yield {
                        "id": example.id,
                        "split": split,
                        "segments": [_told(segment) for segment in (*context, *answer)],
                    }
            if num_shortened:
                report(
                    f"{reader.task.name}: of {num_records:,} inputs {num_shortened:,} are longer "
                    "than a sequence has room for, and their ends are dropped"
                )


def _told(segment: Segment) -> dict[str, Any]:
    """A segment as a record of JSON has it."""
    if isinstance(segment, MediaSegment):
        return {MEDIA[segment.kind]: {"bytes": base64.b64encode(segment.data).decode()}}
    return {
        "text": segment.text,
        "span": segment.is_span,
        "scored": segment.is_scored,
        "ends_paragraph": segment.ends_paragraph,
    }
