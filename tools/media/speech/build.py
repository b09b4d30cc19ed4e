"""Builds all that there is of speech."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from tools.media.folder import Folder, Row
from tools.media.speech import people, texts, utterances
from tools.media.speech.people import People
from tools.media.speech.programs import FLITE_VOICES, HELD_OUT, Programs, Voice
from tools.media.speech.sounds import encoded
from tools.media.speech.utterances import Utterance, spoken
from tools.packages.used import Packages

FORMAT_VERSION: Final = 2
TASKS: Final = ("spoken_word", "spoken_number", "speech_to_text")
"""Of which `configs/task/speech` has a file for each kind of voice that is held out."""
HELD_OUT_SPLITS: Final = ("voices", "flite", "people")
"""Timbres of espeak-ng, another engine, people: none of them is trained on."""
_HELD_OUT_OF: Final = 10
"""One is spoken for each other split for so many to train."""
_TRIES: Final = 100
"""Numbers that are drawn for one whose parts people have recorded, at most."""
_ROWS_AT_ONCE: Final = 256


def build_speech(
    out: Path, packages: Packages, *, seed: int, num_utterances: int, has_synopses: bool
) -> dict[str, Any]:
    """Build speech with its texts, and tasks of it, unless they are there.

    Args:
        out: directory; what was begun in it goes on.
        packages: what it is made of.
        seed: of what is drawn.
        num_utterances: to train on, of words, of numbers and of texts each.
        has_synopses: whether what packages are for is among the texts.

    Returns:
        The manifest.

    Raises:
        DataError: a package cannot be had or does not do what it did; or the directory holds
            something else.
        InUseError: another process builds there.
        StorageError: it cannot be written.
    """
    asked = {"kind": "speech", "seed": seed, "utterances": num_utterances}
    folder = Folder(out, {"format_version": FORMAT_VERSION, **asked, "synopses": has_synopses})
    if folder.manifest is not None:
        return folder.manifest
    left_out: Counter[str] = Counter()
    with folder.writing(), Programs(packages) as programs:
        synopses = texts.read_synopses(packages) if has_synopses else []
        said = _Said(
            programs=programs,
            people=People(packages, left_out),
            synopses=synopses,
            seed=seed,
            count=num_utterances,
            report=packages.report,
        )
        for task, schema, make in (
            ("spoken_word", utterances.WORD, said.words),
            ("spoken_number", utterances.NUMBER, said.numbers),
            ("speech_to_text", utterances.TEXT, said.texts),
        ):
            for split in ("train", "validation", *HELD_OUT_SPLITS):
                name = f"tasks/{task}/{split}"
                folder.add(f"{name}.parquet", schema, partial(make, split), packages, left_out)
        for task, before, column in (
            ("spoken_word", " ", "text"),
            ("spoken_number", "In digits: ", "number"),
            ("speech_to_text", " ", "text"),
        ):
            rows = partial(_read, out / f"tasks/{task}/train.parquet")

            def make_documents(
                rows: Callable[[], Iterator[Row]] = rows,
                name: str = task,
                before: str = before,
                column: str = column,
            ) -> Iterator[Row]:
                return utterances.documents(rows(), name=name, before=before, of=column)

            folder.add(f"train/{task}.parquet", utterances.DOCUMENT, make_documents, packages)
        return folder.finish(
            left_out,
            tasks=[f"tasks/{name}" for name in TASKS],
            held_out={
                "voices": [voice.name for voice in programs.voices(held_out=True)],
                "flite": [*FLITE_VOICES],
                "people": [people.VOICE],
            },
            encoded_by=f"soundfile {soundfile.__version__}",
        )


class _Said:
    """What is spoken for each split of each task.

    Args:
        programs: speak.
        people: have spoken.
        synopses: among the texts.
        seed: of what is drawn.
        count: of each to train on.
        report: told how far it is.
    """

    def __init__(
        self,
        *,
        programs: Programs,
        people: People,
        synopses: list[str],
        seed: int,
        count: int,
        report: Callable[[str], None],
    ):
        self._programs, self._people, self._synopses = programs, people, synopses
        self._seed, self._count, self._report = seed, count, report
        trained, held_out = (programs.voices(held_out=held_out) for held_out in (False, True))
        flite = [Voice(engine=HELD_OUT, name=name) for name in FLITE_VOICES]
        self._voices = {"train": trained, "validation": trained, "voices": held_out, "flite": flite}

    def words(self, split: str) -> Iterable[Row]:
        """Words, of which all are trained on."""
        seed = f"{self._seed} spoken_word/{split}"
        if split == "people":
            said = [each for each in self._recorded() if each.text in texts.WORDS]
        else:
            said = self._spoken("spoken_word", split, cycle(texts.WORDS))
        return utterances.words_asked(said, seed=seed)

    def numbers(self, split: str) -> Iterable[Row]:
        """Numbers, of which longer ones are held out."""
        seed = f"{self._seed} spoken_number/{split}"
        found = texts.numbers(held_out=split != "train", seed=seed)
        if split == "people":
            count = self._count_of(split)
            tried = ((n, self._people.number(n)) for n in islice(found, _TRIES * count))
            told = [*islice(((n, each) for n, each in tried if each is not None), count)]
            numbers = [number for number, _ in told]
            said = [_recorded(texts.in_words(number), samples) for number, samples in told]
        else:
            numbers = [*islice(found, self._count_of(split))]
            said = self._spoken("spoken_number", split, map(texts.in_words, numbers))
        return utterances.numbers_asked(said, numbers, seed=seed)

    def texts(self, split: str) -> Iterable[Row]:
        """Texts, of which some are held out."""
        if split == "people":
            return utterances.transcribed(self._recorded())
        seed = f"{self._seed} speech_to_text/{split}"
        found = texts.texts(self._synopses, held_out=split != "train", seed=seed)
        return utterances.transcribed(self._spoken("speech_to_text", split, found))

    def _spoken(self, task: str, split: str, found: Iterable[str]) -> Iterator[Utterance]:
        return spoken(
            self._programs,
            self._voices[split],
            found,
            name=f"tasks/{task}/{split}",
            seed=self._seed,
            count=self._count_of(split),
            report=self._report,
        )

    def _count_of(self, split: str) -> int:
        return self._count if split == "train" else max(1, self._count // _HELD_OUT_OF)

    def _recorded(self) -> list[Utterance]:
        """The prompts in the order of their hashes, so that the first few are like all."""
        said = [_recorded(prompt.text, prompt.samples) for prompt in self._people.prompts]
        return utterances.mixed(said)


def _recorded(text: str, samples: Any) -> Utterance:
    voice = Voice(engine=people.ENGINE, name=people.VOICE)
    return Utterance(voice=voice, text=text, sound=encoded(samples))


def _read(path: Path) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            assert isinstance(batch, pa.RecordBatch)
            yield from batch.to_pylist()
