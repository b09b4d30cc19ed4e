"""How arms differ, and what could have been seen of it."""

import math
import random
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from scipy import stats

from tests.train.tasks.making import SENSES
from tools.comparison.results import ALL, Protocol, differences, over_seeds, ranged, score_rows
from tools.comparison.table import page
from tools.tasks.majority import Majority
from train.config_files import load
from train.errors import DataError
from train.scores.evaluation import Answered
from train.tasks.task import Task

ARMS, SEEDS = ["gpt", "fresh", "given"], [1, 2, 3]
ROWS = 40
INTERVAL = ("difference_low", "difference_high", "visible_difference")


def task(directory: Path, name: str, cluster: str) -> Task:
    file = directory / f"{name}.yaml"
    text = SENSES.replace("senses", name).replace("inference", cluster)
    file.write_text(text.replace("DIRECTORY", str(directory)))
    return load(Task, [str(file)])


def answered(name: str, number: int, is_right: bool) -> Answered:
    return Answered(
        id=f"{name}/test:{number}",
        group=f"{name} {number}",
        asked="",
        answer="yes" if is_right else "no",
        right=("yes",),
        choices=("yes", "no"),
        scores=(),
        tied=(),
        counts={"accuracy": [float(is_right)]},
    )


def protocol(directory: Path, *, better: float = 0.0, spread: float = 0.0) -> Protocol:
    """Of three tasks in two clusters; arm `given` is better, and seeds vary.

    Rows come in another order from each model.
    """
    chance = random.Random(0)
    tasks = [task(directory, *names) for names in (("a", "one"), ("b", "one"), ("c", "two"))]
    answers = {}
    for arm in ARMS:
        for seed in SEEDS:
            share = 0.5 + better * (arm == "given") + spread * (seed - 2) * (arm == "given")
            answers[arm, seed] = {}
            for each in tasks:
                rows = [(n, chance.random() < share) for n in range(ROWS)]
                chance.shuffle(rows)
                answers[arm, seed][each.name] = {
                    (0, f"{each.name}/test:{n}"): answered(each.name, n, right) for n, right in rows
                }
    return Protocol(
        name="multitask",
        demonstrations=0,
        tasks=tasks,
        answers=answers,
        majority=lambda task, _: Majority(["yes", "no", "yes"] if task.name != "c" else ["no"]),
    )


def test_a_difference_is_of_pairs_over_rows_and_seeds(tmp_path: Path) -> None:
    found = protocol(tmp_path, better=0.3, spread=0.05)
    seen = found.compare("given", "gpt", SEEDS, found.tasks)
    # By hand: right or not of each row and seed, both arms in the order of the rows' names.
    table = np.array(
        [
            [
                [
                    [float(found.answers[arm, seed][name][0, f"{name}/test:{n}"].answer == "yes")
                     for n in range(ROWS)]
                    for name in "abc"
                ]
                for seed in SEEDS
            ]
            for arm in ("given", "gpt")
        ]
    )  # fmt: skip
    gaps = table[0] - table[1]  # [seed, task, row]
    per_seed = gaps.mean(axis=(1, 2))
    of_seeds = stdev(per_seed) ** 2 / 3
    of_rows = [float(stdev(rows)) ** 2 / ROWS / 9 for rows in gaps.mean(axis=0).tolist()]
    assert seen.value == pytest.approx(gaps.mean())
    assert seen.standard_error == pytest.approx(math.sqrt(of_seeds + sum(of_rows)))
    freedom = seen.standard_error**4 / (
        of_seeds**2 / 2 + sum(part**2 / (ROWS - 1) for part in of_rows)
    )
    assert seen.groups - 1 == int(freedom)
    reach = float(stats.t.ppf(0.975, int(freedom))) * seen.standard_error
    assert seen.interval == pytest.approx((gaps.mean() - reach, gaps.mean() + reach))
    visible = float(stats.t.ppf(0.975, int(freedom))) + float(stats.norm.ppf(0.8))
    assert seen.visible == pytest.approx(visible * seen.standard_error)


def test_a_better_arm_is_seen_and_an_equal_one_is_not(tmp_path: Path) -> None:
    found = protocol(tmp_path, better=0.35)
    low, high = found.compare("fresh", "gpt", SEEDS, found.tasks).interval or (1, 1)
    assert low < 0 < high
    low, _ = found.compare("given", "gpt", SEEDS, found.tasks).interval or (0, 0)
    assert low > 0.1


def test_what_is_equal_everywhere_has_no_interval(tmp_path: Path) -> None:
    found = protocol(tmp_path)
    alike = ranged(found.compare("gpt", "gpt", SEEDS, found.tasks))
    assert alike == {"difference": 0.0, **dict.fromkeys(INTERVAL)}
    one = ranged(protocol(tmp_path, better=0.3).compare("given", "gpt", [1], found.tasks))
    assert one["difference"]
    assert [one[key] for key in INTERVAL] == [None] * 3


def test_rows_that_one_arm_has_not_answered_count_nowhere(tmp_path: Path) -> None:
    found = protocol(tmp_path)
    found.answers["fresh", 2]["a"].pop((0, "a/test:7"))  # pyright: ignore[reportAttributeAccessIssue]
    assert len(found.keys(found.tasks[0])) == ROWS - 1
    assert found.counts("gpt", 1, found.tasks[0]).shape == (ROWS - 1, 1)
    found.answers["fresh", 2]["c"].clear()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(DataError, match="no row of c was answered by all arms"):
        found.keys(found.tasks[2])


def test_one_seed_gives_no_interval() -> None:
    assert over_seeds([1.0, 2.0, 4.5]).value == 2.5
    assert math.isnan(over_seeds([1.0]).standard_error)


def test_the_table_has_each_protocol_cluster_and_arm(tmp_path: Path) -> None:
    found = protocol(tmp_path, better=0.3)
    rows = score_rows([found], ARMS, SEEDS)
    assert {(row["arm"], row["seed"], row["protocol"]) for row in rows} == {
        (arm, seed, "multitask") for arm in ARMS for seed in SEEDS
    }
    assert rows[0]["score"] == pytest.approx(
        fmean(each["score"] for each in rows[0]["tasks"].values())
    )
    compared = differences([found], ARMS, SEEDS)
    assert len(compared) == 3 * 3, "two clusters and all, three pairs of arms"
    [of_all] = [
        row for row in compared
        if (row["cluster"], row["arm"], row["against"]) == (ALL, "given", "gpt")
    ]  # fmt: skip
    assert of_all["majority"] == pytest.approx(2 / 3), "yes is right, and commonest but in c"
    cost = {"operations": 2e12, "loss": 3.0, "loss_equal_compute": None}
    seen = {"equal_tokens": {**of_all}, "equal_compute": None}
    text = page(
        {
            "arms": ARMS,
            "steps": {"pretraining": 9},
            "rows": rows,
            "differences": compared,
            "costs": {
                "runs": [
                    {"arm": arm, "seed": seed, "kind": "pretraining", **cost}
                    for arm in ARMS
                    for seed in SEEDS
                ],
                "differences": [
                    {"kind": "pretraining", "arm": arm, "against": "gpt", **seen}
                    for arm in ARMS[1:]
                ],
            },
        }
    )
    shown = (
        f"{100 * of_all['difference']:+.1f} [{100 * of_all['difference_low']:+.1f}, "
        f"{100 * of_all['difference_high']:+.1f}], {100 * of_all['visible_difference']:.1f}"
    )
    [line] = [line for line in text.splitlines() if line.startswith("| multitask | all |")]
    assert shown in line
    assert "| pretraining | gpt | 2.0 | 3.000 | – | – | – |" in text
