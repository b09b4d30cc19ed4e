"""The steps that a run leaves out: named beforehand, or found to be wrong on the way.

A step that is left out reads nothing and updates nothing; the learning rate and the data go on as
planned. What was found lies in `left_out.json` of the run's directory before the next step is made,
and in each checkpoint: a run that is started again leaves out the same steps.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, Self

from pydantic import TypeAdapter

from train.errors import RunDirectoryError
from train.storage.place import Place
from train.storage.record import Count, Record, content_of, parse

Reason = Literal["named", "not finite", "spike"]
"""Why a step is left out: the configuration names it, or what it computed was wrong."""

_BYTES_AT_MOST: Final = 1 << 28
_REMEDY: Final = "put back what was there, or a copy of `left_out` in a checkpoint's state.json"


class LeftOutStep(Record):
    """One step that is left out."""

    step: Count
    reason: Reason


_STEPS: Final = TypeAdapter(list[LeftOutStep])


class LeftOut(Mapping[int, Reason]):
    """Why each step that is left out is, by its number.

    Args:
        steps: known so far.
    """

    def __init__(self, steps: Iterable[LeftOutStep] = ()) -> None:
        self._reasons: dict[int, Reason] = {each.step: each.reason for each in steps}

    @classmethod
    def of_run(
        cls, file: Place, *, named: Iterable[int], saved: Iterable[LeftOutStep], saved_step: int
    ) -> Self:
        """All that a run knows of when it starts.

        Args:
            file: its `left_out.json`, which need not be there.
            named: steps that its configuration names.
            saved: what the checkpoint keeps that the run goes on from.
            saved_step: steps made in that.

        Raises:
            RunDirectoryError: the file is damaged; or a step was made that is to be left out.
        """
        before = cls(saved)
        found = cls([LeftOutStep(step=step, reason="named") for step in named])
        earlier = cls(read_left_out(file))._reasons | before._reasons
        # What a user had named and names no more is made, unless it has been left out already.
        found._reasons |= {
            step: reason
            for step, reason in earlier.items()
            if reason != "named" or step <= saved_step
        }
        made = sorted(step for step in found if step <= saved_step and step not in before)
        if made:
            raise RunDirectoryError(
                f"left_out: step {made[0]} is to be left out, but the checkpoint of step "
                f"{saved_step} has made it: name steps behind that, or go on from a checkpoint "
                "before it (its name in checkpoints/latest)"
            )
        return found

    def __getitem__(self, step: int, /) -> Reason:
        return self._reasons[step]

    def __iter__(self):
        return iter(self._reasons)

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, steps: Iterable[int], reason: Reason) -> None:
        """Leave out more from now on."""
        self._reasons |= dict.fromkeys(steps, reason)

    def listed(self) -> list[LeftOutStep]:
        """All, in the order of steps."""
        steps = sorted(self._reasons.items())
        return [LeftOutStep(step=step, reason=reason) for step, reason in steps]

    def dumped(self) -> list[dict[str, Any]]:
        """The same, as a checkpoint keeps it."""
        return [each.model_dump() for each in self.listed()]

    def write(self, file: Place) -> None:
        """Keep what was found, so that a run that is started again knows it; one rank calls it.

        Raises:
            RunDirectoryError: it cannot be written.
        """
        try:
            file.write(_STEPS.dump_json(self.listed(), indent=1) + b"\n")
        except OSError as error:
            raise RunDirectoryError(
                f"{file} cannot be written ({error.strerror or error}): make room there, and run "
                "again to continue"
            ) from error

    def before(self, step: int, reason: Reason) -> int:
        """How many steps in a row before a step are left out for a reason.

        Those that are left out for another one do not count, and do not end the row.
        """
        count = 0
        while (earlier := self._reasons.get(step := step - 1)) is not None:
            count += earlier == reason
        return count

    def among(self, steps: range, reason: Reason) -> int:
        """How many of some steps are left out for a reason."""
        return sum(self._reasons.get(step) == reason for step in steps)


def read_left_out(file: Place) -> list[LeftOutStep]:
    """What a run's `left_out.json` says; nothing if there is none.

    Raises:
        RunDirectoryError: it is damaged.
    """
    try:
        content = content_of(file, limit_bytes=_BYTES_AT_MOST)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return parse(_STEPS, content, name=str(file), error=RunDirectoryError, remedy=_REMEDY)
