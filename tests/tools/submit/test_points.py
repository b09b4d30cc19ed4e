"""Seeds and sweeps as runs of their own."""

import pytest

from tools.submit.job import arguments_of_task
from tools.submit.points import points, separated
from train.config import RunConfig
from train.config_files import load
from train.errors import UserError

TINY = "configs/experiment/tiny.yaml"
LAB = "configs/cluster/lab.yaml"


def test_all_combinations_each_with_a_place_of_its_own() -> None:
    arguments = [TINY, LAB, "run_directory=runs/it's", "cluster.store=s3://b/p"]
    common = load(RunConfig, arguments)
    found = points(seeds=[1, 2], sweeps=["optim.lr=1e-3,2e-3"])
    configs = [load(RunConfig, [*arguments, *each.placed(common)]) for each in found]
    assert [(each.seed, each.optim.lr) for each in configs] == [
        (1, 1e-3), (1, 2e-3), (2, 1e-3), (2, 2e-3)
    ]  # fmt: skip
    assert configs[1].run_directory == "runs/it's-seed_1-optim.lr_2e-3"
    assert configs[1].run_mirror == "s3://b/p/it's-seed_1-optim.lr_2e-3"
    assert configs[1].name == "tiny-seed_1-optim.lr_2e-3"
    for key in ("run_directory", "name"):
        assert len({getattr(each, key) for each in configs}) == 4


def test_one_run_is_what_it_was() -> None:
    [alone] = points(seeds=[], sweeps=[])
    assert alone.placed(load(RunConfig, [TINY, LAB])) == []


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-3,2e-3", ["1e-3", "2e-3"]),
        ("[a,b],[c]", ["[a,b]", "[c]"]),
        ("{kind: random, ratio: 0.1},'x,y'", ["{kind: random, ratio: 0.1}", "'x,y'"]),
        ("a,", ["a", ""]),
    ],
)
def test_values_are_parted_at_commas(text: str, values: list[str]) -> None:
    assert separated(text) == values


@pytest.mark.parametrize(
    ("seeds", "sweeps", "message"),
    [
        ([], ["optim.lr"], r"--sweep optim.lr: write KEY=VALUE,VALUE"),
        ([], ["optim.lr=1,"], r"--sweep optim.lr=1,: write KEY=VALUE,VALUE"),
        ([], ["optim.lr=1,2", "optim.lr=3"], "optim.lr: is given twice"),
        ([1], ["seed=2"], "seed: is given twice"),
        ([1, 1], [], "seed: a value is named twice among 1, 1"),
        ([], ["run_directory=a,b"], "run_directory: each run gets one of its own"),
        (list(range(141)), [], r"141 runs are more than one job may be for \(140\): submit them"),
        ([], ["cluster.nodes=1,2"], "cluster.nodes: all runs of an array ask for the same"),
        ([], ["cluster=null,{}"], "--sweep cluster: all runs of an array ask for the same"),
        ([], ["data.corpus=a/b,a b"], "would share a directory"),
    ],
)
def test_what_makes_no_sense(seeds: list[int], sweeps: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        points(seeds=seeds, sweeps=sweeps)


def test_a_task_runs_what_is_common_and_its_own() -> None:
    given = ["a.yaml", "x=1", "--", "seed=1", "name=a", "--", "seed=2"]
    assert arguments_of_task(given, "1") == ["a.yaml", "x=1", "seed=2"]
    assert arguments_of_task(["a.yaml"], None) == arguments_of_task(["a.yaml"], "3") == ["a.yaml"]
    for task in (None, "2", "x"):
        with pytest.raises(UserError, match="there are tasks 0 to 1"):
            arguments_of_task(given, task)
