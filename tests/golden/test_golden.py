"""Golden files: a changed default, parameter or loss shows in review as a changed line.

`make golden` rewrites them after a change that is meant to alter them.
"""

import json
from pathlib import Path

import pytest
import torch

from model.semicausal import SemiCausal
from parallel.engine import decays
from tests import warm
from tests.corpora import write_corpus
from tests.train.runs import TINY_RUN, run
from tools.gpu_check import parity
from tools.ranks import RankPool
from train.config import RunConfig
from train.config_files import dump, load

GOLDEN = Path(__file__).parent
EXPERIMENTS = sorted(Path("configs/experiment").glob("*.yaml"))
CLUSTERS = sorted(Path("configs/cluster").glob("*.yaml"))


def compare(request: pytest.FixtureRequest, name: str, text: str) -> None:
    path = GOLDEN / name
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert path.exists(), f"{path} is missing: run `make golden`"
    assert text == path.read_text(), "if the change is meant, run `make golden`"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_resolved_configuration(request: pytest.FixtureRequest, path: Path) -> None:
    compare(request, f"{path.stem}.config.yaml", dump(load(RunConfig, [str(path)])))


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda path: path.stem)
def test_clusters_go_with_experiments(cluster: Path) -> None:
    for experiment in EXPERIMENTS:
        load(RunConfig, [str(experiment), str(cluster)])


@pytest.mark.parametrize("name", ["first_light", "metalm_1p3b"])
def test_parameter_table(request: pytest.FixtureRequest, name: str) -> None:
    config = load(RunConfig, [f"configs/experiment/{name}.yaml"])
    with torch.device("meta"):
        model = SemiCausal(config.built_model)
    rows = [
        f"{parameter_name:60} {'x'.join(map(str, parameter.shape)):>12} "
        f"{'decay' if decays(parameter_name, parameter) else '-':5} "
        f"{'trains' if parameter.requires_grad else 'frozen'}"
        for parameter_name, parameter in model.named_parameters()
    ]
    compare(request, f"{name}.parameters.txt", "\n".join(rows) + "\n")


def test_twenty_steps(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Losses of 20 steps; to 1e-4, since processors round sums differently."""
    corpus = write_corpus(tmp_path / "corpus")
    metrics = run(corpus, tmp_path / "run", "steps=20", "zero.stage=1")
    path = GOLDEN / f"{TINY_RUN.stem}.losses.txt"
    if request.config.getoption("--update-golden"):
        path.write_text("".join(f"{r.step} {r.loss:.6f}\n" for r in metrics.train))
    golden = [float(line.split()[1]) for line in path.read_text().splitlines()]
    assert [r.loss for r in metrics.train] == pytest.approx(golden, rel=1e-4)


def test_losses_that_a_gpu_is_held_against(request: pytest.FixtureRequest) -> None:
    """Of one mode; tests/tools/test_gpu_check.py looks at all of them."""
    is_update = request.config.getoption("--update-golden")
    modes = [*parity.MODES] if is_update else [parity.FIRST]
    with RankPool(1, cuda=True, context=warm.context()) as pool:
        [found] = pool.run(parity.references, modes)
    if is_update:
        parity.GOLDEN.write_text(parity.dumped(found))
    golden = json.loads(parity.GOLDEN.read_text())
    for name, history in found.items():
        # Processors round sums differently, and products of bf16 more so.
        tolerance = 1e-5 if "fp32" in name else parity.TOLERANCES["bf16"]
        losses, wanted = ([loss for loss, _ in steps] for steps in (history, golden[name]))
        assert losses == pytest.approx(wanted, rel=tolerance), name
