"""`python -m tests.tools.media.speech.listening`: what PocketSphinx hears, to compare with.

Its wheel, with its English model, is downloaded once and never installed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tools.media.speech.sounds import RATE
from tools.packages.kept import package_cache
from tools.packages.used import Packages
from train.data.spans.sound import read_samples
from train.scores.interval import Estimate, estimate
from train.scores.metric import metric

# In a process of its own: of each line's path, what is heard in its samples.
_LISTENS = """
import json, sys
from pocketsphinx import Decoder
decoder = Decoder(samprate=16000, loglevel="FATAL")
for line in sys.stdin:
    decoder.start_utt()
    with open(line.strip(), "rb") as file:
        decoder.process_raw(file.read(), full_utt=True)
    decoder.end_utt()
    found = decoder.hyp()
    print(json.dumps("" if found is None else found.hypstr), flush=True)
"""


def told(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def listened(sounds: Sequence[bytes], cache: Path) -> list[str]:
    """The words that PocketSphinx hears in each of some files."""
    wheel = Packages(cache=cache, report=told).pypi("pocketsphinx", "5.1.1", licence="BSD-2-Clause")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place / "unpacked")
        paths: list[Path] = []
        for number, sound in enumerate(sounds):
            samples = np.clip(read_samples(sound, rate=RATE) * 2**15, -(2**15), 2**15 - 1)
            paths.append(place / f"{number}.raw")
            paths[-1].write_bytes(samples.astype("<i2").tobytes())
        done = subprocess.run(
            [sys.executable, "-c", _LISTENS],
            input="\n".join(map(str, paths)),
            env={"PYTHONPATH": str(place / "unpacked")},
            capture_output=True,
            text=True,
            check=True,
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def scored(rows: Sequence[dict[str, Any]], heard: Sequence[str]) -> Estimate:
    """Word accuracy of what was heard."""
    counted = metric("word_accuracy")
    counts = [counted.count(said, [row["text"]]) for said, row in zip(heard, rows, strict=True)]
    return estimate(counted, np.array(counts), [row["text"] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speech", type=Path, default=Path("data/media/speech"))
    parser.add_argument("--split", default="people")
    parser.add_argument("--rows", type=int, default=10**9, help="the first of them")
    options = parser.parse_args()
    path = options.speech / f"tasks/speech_to_text/{options.split}.parquet"
    rows = pq.read_table(path).slice(0, options.rows).to_pylist()
    heard = listened([row["sound"] for row in rows], package_cache())
    found = scored(rows, heard)
    low, high = found.interval or (found.value, found.value)
    for row, said in [*zip(rows, heard, strict=True)][:10]:
        sys.stdout.write(f"{row['text']!r}: {said!r}\n")
    score = f"{found.value:.3f} [{low:.3f}, {high:.3f}]"
    sys.stdout.write(f"{options.split}: word accuracy {score}, {len(rows)} rows\n")


if __name__ == "__main__":
    main()
