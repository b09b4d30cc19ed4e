"""What people said: Asterisk's English prompts, read by Allison Smith, with their texts."""

import gzip
import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tools.media.speech.sounds import RATE, joined, trimmed
from tools.media.speech.texts import in_words
from tools.packages import debian
from tools.packages.used import Packages
from train.errors import DataError

TEXTS: Final = "asterisk-core-sounds-en"
SOUNDS: Final = "asterisk-core-sounds-en-g722"
LICENCE: Final = "CC-BY-SA-3.0"
ENGINE: Final = "people"
VOICE: Final = "Allison Smith"

_TEXTS_FILE: Final = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
_SOUND: Final = re.compile(r"usr/share/asterisk/sounds/en[^/]*/(.+)\.g722")
_NUMBER: Final = re.compile(r"\b\d{1,4}\b")
_WORDS: Final = re.compile(r"[a-z']+(?: [a-z']+)*")
_PAUSES: Final = re.compile(r"[-.,;:!?\"]+")
_LONGEST_SECONDS: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A recording.

    Attributes:
        name: its path in the package, without suffix.
        text: what is said: words in lower case between single spaces.
        samples: at `RATE`, between -1 and 1, without silence around it.
    """

    name: str
    text: str
    samples: npt.NDArray[np.float32]


class People:
    """The prompts whose texts are words.

    Args:
        packages: gives the packages.
        left_out: counts the others by reason.

    Raises:
        DataError: a package cannot be had or is damaged.
    """

    def __init__(self, packages: Packages, left_out: Counter[str]):
        told = _texts(packages)
        found: list[Prompt] = []
        package = packages.debian(SOUNDS, licences=[LICENCE])
        for path, content in debian.files(package, wanted=lambda path: bool(_SOUND.match(path))):
            match = _SOUND.match(path)
            assert match is not None, "asked for"
            text = said_of(told.get(match[1], ""))
            if text is None:
                left_out["prompts that are no words"] += 1
                continue
            samples = trimmed(_decoded(content, path))
            if len(samples) > _LONGEST_SECONDS * RATE:
                left_out["prompts of more than 30 seconds"] += 1
                continue
            found.append(Prompt(name=match[1], text=text, samples=samples))
        if not found:
            raise DataError(f"{package} has no prompt with a text; delete it, and build again")
        self.prompts = sorted(found, key=lambda prompt: prompt.name)
        digits = [prompt for prompt in self.prompts if prompt.name.startswith("digits/")]
        self._digits = {prompt.text: prompt.samples for prompt in digits}

    def number(self, number: int) -> npt.NDArray[np.float32] | None:
        """A number as Asterisk says it, of its parts; None where one was never recorded."""
        words = in_words(number).split()
        if not {*words} <= {*self._digits}:
            return None
        return joined([self._digits[word] for word in words])


def said_of(told: str) -> str | None:
    """The words of a prompt's text, numbers among them in words; None where it is not all words."""
    if re.search(r"[\[\]<>*#@$%&=+/\\()]", told):
        return None
    text = _NUMBER.sub(lambda number: in_words(int(number[0])), told.lower().replace("’", "'"))
    text = " ".join(_PAUSES.sub(" ", text).split())
    return text if _WORDS.fullmatch(text) else None


def _texts(packages: Packages) -> Mapping[str, str]:
    package = packages.debian(TEXTS, licences=[LICENCE])
    [content] = [
        content for _, content in debian.files(package, wanted=lambda path: path == _TEXTS_FILE)
    ] or [b""]
    if not content:
        raise DataError(f"{package} has no {_TEXTS_FILE}; delete it, and build again")
    lines = gzip.decompress(content).decode(errors="replace").splitlines()
    told = (line.partition(":") for line in lines if not line.startswith(";"))
    return {name.strip(): text.strip() for name, _, text in told}


def _decoded(content: bytes, name: str) -> npt.NDArray[np.float32]:
    """Samples of G.722, which libsndfile does not read."""
    import av  # loads FFmpeg, half a second
    import av.error

    try:
        with av.open(io.BytesIO(content), "r", format="g722") as file:
            parts = [frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)]
    except av.error.FFmpegError as error:
        raise DataError(
            f"{SOUNDS}: {name} cannot be decoded ({error}); delete it, and build again"
        ) from error
    return (np.concatenate(parts) / 2**15).astype(np.float32)
