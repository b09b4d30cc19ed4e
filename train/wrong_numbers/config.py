"""When a step whose numbers are wrong is left out, and when a run gives up."""

from typing import Annotated

from pydantic import Field

from model.config import Config
from train.optim import MOST_STEPS

Several = Annotated[int, Field(ge=0, le=MOST_STEPS)]


class NotFiniteConfig(Config):
    """A step whose loss or gradient is NaN or infinite is computed once more from the same state.

    Where that gives another result the hardware errs, and the run stops. Where it gives the same,
    data or model are to blame, and the step is left out.
    """

    most_in_a_row: Several = 3
    """So many such steps one after the other are left out; one more ends the run. 0 ends it at the
    first."""
    most_in_window: Several = 10
    """So many among the last `window_steps`; one more ends the run."""
    window_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 1000
    """Steps among which `most_in_window` are counted."""


class SpikesConfig(Config):
    """Steps whose loss or gradient norm is far above what is usual.

    After some in a row the run goes back to the last checkpoint before them, and leaves them out.
    """

    window_steps: Annotated[int, Field(ge=4, le=10_000)] = 128
    """The last so many steps that were no spikes say what is usual, by their median and its
    deviation; fewer say nothing."""
    threshold: Annotated[float, Field(ge=1, le=1e6)] = 10.0
    """A spike is so many deviations above the median. A deviation is 1.4826 times the median of the
    distances from the median, as of a normal distribution; at least a thousandth of the median."""
    patience_steps: Annotated[int, Field(ge=1, le=1000)] = 3
    """Spikes in a row after which the run goes back. Fewer are left as they are."""
    most_steps: Several = 100
    """So many steps are left out for spikes; beyond, the run ends."""
