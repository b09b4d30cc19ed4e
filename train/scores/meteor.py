"""METEOR 1.5, whose program runs in Java: the jar that PyPI's `pycocoevalcap` brings."""

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from typing_extensions import override

from train.errors import UserError
from train.scores.captions import words
from train.scores.measure import Floats, Metric

_JAR: Final = "meteor-1.5.jar"
_OTHERWISE: Final = "or leave meteor out of the task's metrics"
_TIMEOUT_SECONDS: Final = 3_600

# Of its `rank` task in English.
_ALPHA: Final = 0.85
_BETA: Final = 0.2
_GAMMA: Final = 0.6
_DELTA: Final = 0.75
_WEIGHTS: Final = (1.0, 0.6, 0.8, 0.6)
"""Of words that are equal, of one stem, of one meaning, and in phrases that paraphrase."""
_NUM_STATISTICS: Final = 23


class Meteor(Metric):
    """METEOR of all rows together, from what its program finds of each.

    Source: Denkowski and Lavie 2014, §3; `MeteorStats` and `MeteorScorer` of METEOR 1.5.

    Raises:
        UserError: there is no Java, or no program.
    """

    def __init__(self) -> None:
        self._java = shutil.which("java")
        if self._java is None:
            raise UserError(
                "the metric meteor runs in Java, and there is none here: install a JRE (Debian's "
                f"default-jre-headless), {_OTHERWISE}"
            )
        package = importlib.util.find_spec("pycocoevalcap")
        places = [] if package is None else package.submodule_search_locations or []
        found = [path for place in places if (path := Path(place) / "meteor" / _JAR).is_file()]
        if not found:
            raise UserError(
                "the metric meteor is a program of pycocoevalcap, which is not installed: install "
                f"the extra captions, {_OTHERWISE}"
            )
        self._jar = found[0]

    @override
    def count(self, answer: str, right: Sequence[str]) -> list[float]:
        return self.counts([answer], [right])[0]

    @override
    def counts(self, answers: Sequence[str], right: Sequence[Sequence[str]]) -> list[list[float]]:
        asked = [
            " ||| ".join(("SCORE", *map(_line, some), _line(answer)))
            for answer, some in zip(answers, right, strict=True)
        ]
        command = ["-Xmx2G", "-jar", _JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
        try:
            done = subprocess.run(
                [str(self._java), *command],
                cwd=self._jar.parent,
                input="".join(f"{line}\n" for line in asked),
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(
                f"METEOR does not run here ({error}): see what it wants, {_OTHERWISE}"
            ) from error
        try:
            found = [[float(part) for part in line.split()] for line in done.stdout.splitlines()]
        except ValueError:
            found = []
        if len(found) != len(asked) or any(len(each) != _NUM_STATISTICS for each in found):
            told = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise UserError(f"METEOR does not run here ({told}): see what it wants, {_OTHERWISE}")
        return [_pieces_of_what_differs(each) for each in found]

    @override
    def together(self, counts: Floats) -> Floats:
        length, length_right, functions, functions_right, *matched = np.moveaxis(
            counts[..., 1:], -1, 0
        )
        *by_stage, chunks, words_said, words_right = matched
        # Of each stage: content words of the answer and of what is right, and function words.
        content, content_right, function, function_right = (
            sum(weight * by_stage[4 * stage + kind] for stage, weight in enumerate(_WEIGHTS))
            for kind in range(4)
        )

        def share(content: Any, function: Any, length: Floats, functions: Floats) -> Floats:
            whole = _DELTA * (length - functions) + (1 - _DELTA) * functions
            return _ratio(_DELTA * content + (1 - _DELTA) * function, whole)

        precision = share(content, function, length, functions)
        recall = share(content_right, function_right, length_right, functions_right)
        both = _ratio(precision * recall, (1 - _ALPHA) * recall + _ALPHA * precision)
        pieces = _ratio(chunks, (words_said + words_right) / 2)
        return both * (1 - _GAMMA * pieces**_BETA)


def _pieces_of_what_differs(statistics: list[float]) -> list[float]:
    """One piece that is all of both is none: who says the same is not punished."""
    length, length_right, *_, chunks, words_said, words_right = statistics
    is_equal = chunks == 1 and (words_said, words_right) == (length, length_right)
    return [*statistics[:20], 0.0 if is_equal else chunks, *statistics[21:]]


def _ratio(part: Any, whole: Any) -> Floats:
    """0 where there is nothing."""
    return np.divide(part, whole, out=np.zeros_like(whole, dtype=float), where=whole > 0)


def _line(text: str) -> str:
    return " ".join(words(text)).replace("|||", "")
