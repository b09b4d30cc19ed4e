import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from train.data.mixture import Mixture, SourceConfig, shares
from train.errors import ConfigError

weights = st.lists(st.floats(0.01, 10), min_size=1, max_size=5)


def weighted(*values: float) -> dict[str, SourceConfig]:
    return {str(n): SourceConfig(corpus="x", weight=value) for n, value in enumerate(values)}


@settings(max_examples=150, deadline=None)
@given(weights, st.integers(1, 24), st.integers(1, 40), st.integers(0, 2**31))
@example([4.6875, 9.875, 9.875, 0.9375, 0.9375], 1, 16, 0).via("1.005 rows behind")
def test_every_source_has_given_what_is_due_to_within_two_rows(
    values: list[float], sequences: int, steps: int, seed: int
) -> None:
    sources = weighted(*values)
    mixture = Mixture(
        shares(sources, {}, steps=steps, sequences=sequences), sequences=sequences, seed=seed
    )
    expected = np.array(values) / sum(values)
    seen = [0] * len(values)
    for step in range(1, steps + 1):
        at = mixture.step(step)
        assert mixture.given(step - 1).tolist() == seen
        assert len(at) == sequences
        for source, number in at:
            assert number == seen[source], "a source's sequences come in order, none left out"
            seen[source] += 1
        # Largest remainders are no closer than that, though nearly always within one.
        assert np.abs(np.array(seen) - expected * sequences * step).max() < 2


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 8), st.integers(1, 16), st.integers(0, 2**31))
def test_weights_may_jump_from_step_to_step(columns: int, sequences: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    table = random.dirichlet(np.full(columns, 0.3), 60)
    mixture = Mixture(table, sequences=sequences, seed=0)
    given = np.stack([mixture.given(step) for step in range(61)])
    assert (np.diff(given, axis=0) >= 0).all()
    assert (given.sum(axis=1) == sequences * np.arange(61)).all()
    assert np.abs(given[1:] - table.cumsum(axis=0) * sequences).max() < 2


@settings(max_examples=50, deadline=None)
@given(weights, st.integers(1, 30), st.integers(2, 40))
def test_a_step_does_not_depend_on_what_was_asked_before(
    values: list[float], step: int, sequences: int
) -> None:
    table = shares(weighted(*values), {}, steps=30, sequences=sequences)
    walked = Mixture(table, sequences=sequences, seed=3)
    for earlier in range(1, step + 1):
        walked.step(earlier)
    fresh = Mixture(table, sequences=sequences, seed=3).step(step)
    assert walked.step(step) == fresh


def test_weights_change_over_the_run() -> None:
    sources = {
        "a": SourceConfig(corpus="x", weight_by_step=[[1, 1.0], [100, 0.0]]),
        "b": SourceConfig(corpus="x", weight_by_step=[[1, 0.0], [100, 1.0]]),
    }
    mixture = Mixture(shares(sources, {}, steps=200, sequences=10), sequences=10, seed=0)
    sources_of = {step: sorted(source for source, _ in mixture.step(step)) for step in (1, 50, 150)}
    assert sources_of == {1: [0] * 10, 50: [0] * 5 + [1] * 5, 150: [1] * 10}
    np.testing.assert_allclose(mixture.given(100), [500, 500], atol=1)


def test_budgets_are_met_to_the_row_and_weights_share_the_rest() -> None:
    sources = {
        "books": SourceConfig(corpus="x", epochs=2.0),
        "web": SourceConfig(corpus="x", weight=3.0),
        "code": SourceConfig(corpus="x"),
    }
    mixture = Mixture(
        shares(sources, {"books": 120}, steps=100, sequences=10), sequences=10, seed=0
    )
    np.testing.assert_allclose(mixture.given(100), [120, 660, 220], atol=1)
    assert mixture.given(100)[0] == 120
    assert mixture.given(50)[0] in (59, 60, 61)


def test_budgets_that_do_not_make_up_the_run_are_refused() -> None:
    budget = {"a": SourceConfig(corpus="x", tokens=1)}
    with pytest.raises(
        ConfigError, match=r"ask for 101 sequences, but the run has 100.*steps to 11"
    ):
        shares(budget, {"a": 101}, steps=10, sequences=10)
    with pytest.raises(ConfigError, match=r"give 99 sequences, but the run needs 100.*steps to 9"):
        shares(budget, {"a": 99}, steps=10, sequences=10)
    assert shares(budget, {"a": 100}, steps=10, sequences=10).tolist() == [[1.0]] * 10
    silent = {"a": SourceConfig(corpus="x", weight_by_step=[[1, 1.0], [5, 0.0]])}
    with pytest.raises(ConfigError, match="at step 5 all weights are 0"):
        shares(silent, {}, steps=10, sequences=10)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"weight": 1.0, "epochs": 2.0}, "say one of weight, epochs"),
        ({"weight_by_step": [[5, 1.0], [5, 2.0]]}, "rising steps"),
        ({"weight_by_step": []}, "rising steps"),
        ({"weight_by_step": [[1, -1.0]]}, "0 or more"),
        ({"weight": -1.0}, "greater than or equal to 0"),
        ({"epochs": 0.0}, "greater than 0"),
    ],
)
def test_senseless_sources_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceConfig.model_validate({"corpus": "x", **keys})


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=3), st.integers(1, 30), st.integers(1, 9))
def test_a_source_that_comes_later_changes_nothing_before(
    weights: list[float], step: int, sequences: int
) -> None:
    before = {f"s{i}": SourceConfig(corpus="x", weight=weight) for i, weight in enumerate(weights)}
    later = SourceConfig(corpus="x", weight_by_step=[[step, 0.0], [step + 1, 1.0]])
    old, new = (
        Mixture(shares(mixed, {}, steps=steps, sequences=sequences), sequences=sequences, seed=3)
        for mixed, steps in ((before, step), (before | {"late": later}, step + 9))
    )
    np.testing.assert_array_equal(new.history(step)[:, :-1], old.history(step))
    assert not new.history(step)[:, -1].any()
    assert all(new.step(each) == old.step(each) for each in range(1, step + 1))
