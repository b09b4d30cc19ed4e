"""The runs of one submission: one, or a run for each seed and each point of a sweep."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from train.config import RunConfig
from train.errors import UserError
from train.plain_yaml import YamlError, parse

_MOST_POINTS: Final = 140
"""As many as the comment of their job has room for, by which they are known (`flags.py`)."""
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9.+-]+")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run among others.

    Attributes:
        name: of it among these, such as `seed_1-optim.lr_1e-3`; empty for one that is alone.
        overrides: that make it of what all have in common.
    """

    name: str
    overrides: tuple[str, ...]

    def placed(self, common: RunConfig) -> list[str]:
        """Its overrides, with a directory and a name of its own.

        Args:
            common: what all points have in common.
        """
        if not self.name:
            return []
        moved = {"run_directory": beside(common.run_directory, self.name)}
        elsewhere = {
            "checkpoint.directory": common.checkpoint.directory,
            "run_mirror": common.run_mirror,
        }
        moved |= {key: beside(place, self.name) for key, place in elsewhere.items() if place}
        moved["name"] = f"{common.name}-{self.name}"
        return [*self.overrides, *(f"{key}={quoted(value)}" for key, value in moved.items())]


def beside(place: str, name: str) -> str:
    """A place of that name beside another, whose name it begins with."""
    return f"{place.rstrip('/')}-{name}"


def quoted(text: str) -> str:
    """A text as YAML reads it back, whatever it looks like."""
    try:
        if parse(text, comments=False) == text:
            return text
    except YamlError:
        pass
    return "'" + text.replace("'", "''") + "'"


def points(*, seeds: Sequence[int], sweeps: Sequence[str]) -> list[Point]:
    """All combinations; one without a name where nothing is asked for.

    Args:
        seeds: of the runs.
        sweeps: `KEY=VALUE,VALUE…` each.

    Raises:
        UserError: one is no such, names a key twice, or there are too many.
    """
    axes: dict[str, list[str]] = {}
    if seeds:
        axes["seed"] = [str(seed) for seed in seeds]
    for sweep in sweeps:
        key, sign, text = sweep.partition("=")
        values = separated(text)
        if not key or not sign or not all(values):
            raise UserError(f"--sweep {sweep}: write KEY=VALUE,VALUE, such as optim.lr=1e-3,2e-3")
        if key in axes:
            raise UserError(f"--sweep {key}: is given twice: name all its values in one")
        if key in ("run_directory", "run_mirror", "checkpoint.directory", "name"):
            raise UserError(f"--sweep {key}: each run gets one of its own anyway: leave it out")
        if key.partition(".")[0] == "cluster":
            raise UserError(f"--sweep {key}: all runs of an array ask for the same: submit each")
        axes[key] = values
    for key, values in axes.items():
        if len(set(values)) < len(values):
            raise UserError(f"{key}: a value is named twice among {', '.join(values)}")
    if not axes:
        return [Point(name="", overrides=())]
    found = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    if len(found) > _MOST_POINTS:
        raise UserError(
            f"{len(found):,} runs are more than one job may be for ({_MOST_POINTS}): submit them "
            "in parts"
        )
    named = [Point(name=_name(each), overrides=_overrides(each)) for each in found]
    if len({each.name for each in named}) < len(named):
        raise UserError("--sweep: values that differ in signs alone would share a directory")
    return named


def separated(text: str) -> list[str]:
    """Values between commas, but for those within brackets or quotes."""
    values, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        if sign == "," and depth == 0 and not quote:
            values.append("")
        else:
            values[-1] += sign
    return values


def _name(values: Mapping[str, str]) -> str:
    return "-".join(f"{key}_{_NOT_IN_NAMES.sub('_', text)}" for key, text in values.items())


def _overrides(values: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{key}={text}" for key, text in values.items())
