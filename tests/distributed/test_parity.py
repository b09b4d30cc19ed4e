"""ZeRO on ranks computes what one process computes: loss and gradient norm, five fp32 steps."""

from itertools import product
from typing import Literal

import pytest

from tests.distributed.harness import RankPool
from tests.distributed.semicausal_runs import CLIP_NORM, Layout, on_ranks, oracle

TOLERANCE = 1e-5

STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)


def is_daily(layout: Layout, num_ranks: int) -> bool:
    """Whether a cell runs in `make test`; the whole product runs in `make test-all`."""
    if num_ranks == 1 or layout.norm == "pre" or layout.spans == "nowhere":
        return layout.stage == 3 and layout.micro_sequences == 2
    return (layout.micro_sequences, layout.spans) in (
        (4, "everywhere"),
        (2, "first rank"),
        (1, "everywhere"),
    )


CASES = [
    pytest.param(
        num_ranks,
        Layout(stage, micro, spans, norm),
        id=f"zero{stage}-{num_ranks}ranks-micro{micro}-{spans}-{norm}".replace(" ", "-"),
        marks=[] if is_daily(Layout(stage, micro, spans, norm), num_ranks) else pytest.mark.long,
    )
    for num_ranks, stage, micro, spans, norm in product(
        (1, 2), STAGES, (1, 2, 4), ("everywhere", "first rank", "nowhere"), ("deepnorm", "pre")
    )
]


@pytest.mark.parametrize(("num_ranks", "layout"), CASES)
def test_equals_one_process(
    rank_pools: dict[int, RankPool], num_ranks: int, layout: Layout
) -> None:
    expected = oracle(layout)
    histories = rank_pools[num_ranks].run(on_ranks, layout)
    assert all(history == histories[0] for history in histories), "ranks disagree"
    for (loss, norm), (expected_loss, expected_norm) in zip(histories[0], expected, strict=True):
        assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
        assert norm == pytest.approx(expected_norm, rel=TOLERANCE)


def test_oracle_clips_and_learns() -> None:
    """The comparison is worth something: clipping acts, and the loss moves."""
    history = oracle(Layout(0, 8))
    assert history[0][1] > CLIP_NORM
    assert history[-1][0] < history[0][0]
