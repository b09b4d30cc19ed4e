"""ZeRO on ranks computes what one process computes: loss and gradient norm, five fp32 steps."""

import pytest

from tests.distributed.harness import RankPool
from tests.distributed.semicausal_runs import CLIP_NORM, Layout, on_ranks, oracle

TOLERANCE = 1e-5

CASES = [
    pytest.param(2, Layout(stage, micro, spans), id=f"zero{stage}-2ranks-micro{micro}-{spans}")
    for stage in (0, 1, 2, 3)
    for micro, spans in ((4, "everywhere"), (2, "first rank"), (1, "everywhere"))
] + [
    pytest.param(1, Layout(3, 2), id="zero3-1rank"),
    pytest.param(2, Layout(3, 2, "nowhere"), id="zero3-2ranks-no-spans"),
    pytest.param(2, Layout(3, 4, "everywhere", "pre"), id="zero3-2ranks-prenorm"),
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
