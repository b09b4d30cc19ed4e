"""Speech with its words: LibriSpeech."""

import hashlib
from collections.abc import Iterator

from tools.media.public.given import Given, Row, file_name


def librispeech(given: Given, split: str) -> Iterator[Row]:
    """Chapters of readers: `SPLIT/READER/CHAPTER/READER-CHAPTER.trans.txt`, a FLAC for each line.

    The words, which are in capitals there, become lower case.

    Source: openslr.org/12, README; pytorch/audio, `torchaudio/datasets/librispeech.py`.
    """
    directory = given.below(split, f"LibriSpeech/{split}")
    where = directory.relative_to(given.root)
    read = hashlib.sha256()
    for path in sorted(directory.glob("*/*/*.trans.txt")):
        reader, chapter = path.parent.parts[-2:]
        for line in given.lines(path):
            id, _, words = line.partition(" ")
            if not words or not id.startswith(f"{reader}-{chapter}-"):
                raise ValueError(f"it begins with {id!r}, not with the number of an utterance")
            read.update(f"{line}\n".encode())
            name = f"{reader}/{chapter}/{file_name(id)}.flac"
            yield {
                "id": id,
                "group": reader,
                "audio": (f"{where}/{name}", f"{split}/{name}", name),
                "text": words.lower(),
            }
    given.used[f"{where}/*/*/*.trans.txt"] = read.hexdigest()
