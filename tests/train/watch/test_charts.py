"""Chart geometry: ticks, gaps, spikes and single points."""

import math

import pytest

from train.watch.charts import Line, draw_chart, nice_ticks, smoothed


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 900, [0, 200, 400, 600, 800]),
        (5.6, 9.1, [6, 7, 8, 9]),
        (0, 3e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4, 2.5e-4, 3e-4]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high, num_at_most=6) == pytest.approx(expected, abs=1e-12)


def test_smoothing_has_no_startup_bias() -> None:
    constant = [(step, 7.0) for step in range(1, 200)]
    assert [y for _, y in smoothed(constant)] == pytest.approx([7.0] * 199)


def test_smoothing_steps_over_what_is_not_finite() -> None:
    points = smoothed([(1, 7.0), (2, math.nan), (3, 7.0)])
    assert points[0] == (1, 7.0)
    assert math.isnan(points[1][1])
    assert points[2] == (3, pytest.approx(7.0))


def test_a_line_runs_from_corner_to_corner_within_the_margin() -> None:
    chart = draw_chart(
        "t", [Line(name="a", style="main", points=[(0, 0.0), (10, 10.0)])], last_step=10
    )
    assert chart is not None
    # A twentieth of the range stays free above and below: 0.5 of 11.
    assert chart.lines[0].path == "M0.0 954.5L1000.0 45.5"
    assert chart.summary == "a from 0 at step 0 to 10 at 10"


def test_a_missing_value_breaks_the_line_and_a_lone_point_becomes_a_dot() -> None:
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 2.0)]
    chart = draw_chart("t", [Line(name="a", style="main", points=points)], last_step=4)
    assert chart is not None
    assert chart.lines[0].path.count("M") == 2
    assert chart.lines[0].dots == f"M750.0{chart.lines[0].path.rpartition('M750.0')[2]}h0"


@pytest.mark.parametrize("value", [0.0, 5.0, -2.0])
def test_a_constant_has_a_range(value: float) -> None:
    for from_zero in (False, True):
        line = Line(name="a", style="main", points=[(1, value), (2, value)])
        chart = draw_chart("t", [line], last_step=2, from_zero=from_zero)
        assert chart is not None
        assert len(chart.y_ticks) >= 2


def test_a_spike_survives_thinning_and_does_not_flatten_the_rest() -> None:
    points = [(step, 100.0 if step == 4321 else 1.0 + step % 2) for step in range(10_000)]
    chart = draw_chart("t", [Line(name="a", style="raw", points=points)], last_step=10_000)
    assert chart is not None
    assert (4321, 100.0) in chart.lines[0].values
    assert len(chart.lines[0].values) <= 900
    assert float(chart.y_ticks[-1].label) < 3


def test_nothing_to_show_is_no_chart() -> None:
    line = Line(name="a", style="main", points=[(1, math.nan)])
    assert draw_chart("t", [line], last_step=3) is None
