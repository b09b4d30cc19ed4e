"""`make pretrain` fits its run to the machine: what it measures, chooses, keeps and says."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from model.semicausal import parameter_counts
from tools import pretrain
from tools.pretrain import Choice, choose, scheduled
from train.config import RunConfig
from train.config_files import load
from train.errors import UserError
from train.run_directory import RunDirectory

TWO, ONE = (2, 1), (1, 2)


@pytest.mark.parametrize(
    ("case", "rates", "expected"),
    [
        ("fast", {TWO: 6600.0}, Choice(400, 2, 1, 6600.0)),
        ("just fast enough: one rank is not tried", {TWO: 4552.0}, Choice(400, 2, 1, 4552.0)),
        ("slow", {TWO: 3900.0, ONE: 3800.0}, Choice(340, 2, 1, 3900.0)),
        ("nearly alike", {TWO: 3890.0, ONE: 3810.0}, Choice(340, 2, 1, 3890.0)),
        ("two ranks slower by a quarter", {TWO: 3000.0, ONE: 4000.0}, Choice(260, 2, 1, 3000.0)),
        ("by more than a third", {TWO: 2600.0, ONE: 4000.0}, Choice(340, 1, 2, 4000.0)),
        ("one rank takes all steps", {TWO: 2000.0, ONE: 9000.0}, Choice(400, 1, 2, 9000.0)),
        ("slower than minutes allow", {TWO: 1400.0, ONE: 2000.0}, Choice(220, 2, 1, 1400.0)),
        ("very slow", {TWO: 260.0, ONE: 270.0}, Choice(220, 2, 1, 260.0)),
    ],
)
def test_a_choice_is_a_function_of_what_was_measured(
    case: str, rates: dict[tuple[int, int], float], expected: Choice
) -> None:
    asked: list[tuple[int, int]] = []

    def measure(*spread: int) -> float:
        asked.append(spread)  # pyright: ignore[reportArgumentType]  # a pair, as the type cannot say
        return rates[spread]  # pyright: ignore[reportArgumentType]  # likewise

    chosen = choose(measure, [TWO, ONE], steps=400, step_tokens=4096, minutes=6)
    assert chosen == expected, case
    assert asked == list(rates), case
    assert chosen.steps * 4096 >= 800_000


def test_a_gpu_trains_the_larger_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = load(RunConfig, scheduled([], 600))
    assert config.name == "first_light_gpu"
    assert (config.steps, config.optim.warmup_steps) == (600, 60)
    assert 120e6 < sum(parameter_counts(config.built_model).values()) < 128e6
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert load(RunConfig, scheduled([])).name == "first_light"


def test_a_machine_with_one_core_has_one_thread_whatever_its_ranks() -> None:
    rates = {(2, 1): 900.0, (1, 1): 1500.0}
    chosen = choose(lambda *s: rates[s], list(rates), steps=400, step_tokens=4096, minutes=6)
    assert chosen == Choice(220, 1, 1, 1500.0)


def test_a_run_smaller_than_the_least_keeps_its_steps() -> None:
    chosen = choose(lambda *_: 300.0, [TWO, ONE], steps=400, step_tokens=1024, minutes=6)
    assert chosen.steps == 400


def test_a_machine_that_is_too_slow_is_told_how_long_it_would_take() -> None:
    with pytest.raises(UserError, match=r"at 100 tokens/s the 220 steps .* 2\.5 hours.*STEPS=220"):
        choose(lambda *_: 100.0, [TWO, ONE], steps=400, step_tokens=4096, minutes=6)


@pytest.mark.parametrize(
    ("overrides", "steps", "schedule"),
    [
        ([], 400, (400, 40)),
        ([], 220, (220, 22)),
        (["steps=20"], 20, (20, 2)),
        (["steps=2000", "optim.warmup_steps=500"], 2000, (2000, 500)),
        (["optim.warmup_steps=7"], 220, (220, 7)),
    ],
)
def test_the_warm_up_keeps_its_share(
    overrides: list[str], steps: int, schedule: tuple[int, int]
) -> None:
    config = load(RunConfig, scheduled(overrides, steps))
    assert (config.steps, config.optim.warmup_steps) == schedule


class Launcher:
    """Stands in for runs: each is noted, and leaves the files of one that went well."""

    def __init__(self, rates: dict[tuple[int, int], float]) -> None:
        self.rates = rates
        self.measured: list[tuple[int, int]] = []
        self.trained: list[tuple[RunConfig, int, int]] = []

    def __call__(
        self, arguments: Sequence[str], ranks: int, threads: int, *, quiet: bool = False
    ) -> subprocess.CompletedProcess[str]:
        config = load(RunConfig, arguments)
        directory = Path(config.run_directory)
        directory.mkdir(parents=True, exist_ok=True)
        if (ranks, threads) not in self.rates:
            return subprocess.CompletedProcess([], 2, stdout="layout.tensor: 1 rank is too few")
        seconds = 4096 / self.rates[ranks, threads]
        records = [
            {"kind": "train", "step": step, "loss": 7.0, "first_of_span_loss": None}
            | {"other_loss": 7.0, "learning_rate": 1e-3, "gradient_norm": 1.0, "tokens": 4096}
            | {"scored_tokens": 4096, "step_seconds": seconds * (5 if step == 1 else 1)}
            | {"data_wait_seconds": 0.0, "memory_bytes": 1}
            for step in range(1, 5)
        ]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (directory / "metrics.jsonl").write_text(lines)
        if quiet:
            self.measured.append((ranks, threads))
        else:
            self.trained.append((config, ranks, threads))
            numbers = "validation_loss_first validation_loss_last unigram_entropy "
            numbers += "tokens_per_second data_wait_fraction seconds_training"
            summary = {"steps": config.steps, "checkpoint": "c", "report": "r"}
            summary |= dict.fromkeys(numbers.split(), 1.0)
            (directory / "summary.json").write_text(json.dumps(summary))
            (directory / "config.yaml").write_text(f"steps: {config.steps}\n")
        return subprocess.CompletedProcess([], 0, stdout="")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Launcher:
    launcher = Launcher({TWO: 1500.0, ONE: 3000.0})
    monkeypatch.setattr(pretrain, "launch", launcher)
    monkeypatch.setattr(pretrain, "spreads", lambda: [TWO, ONE])
    monkeypatch.setattr(pretrain, "is_built", lambda _: True)
    return launcher


def pretrained(tmp_path: Path, *arguments: str) -> int:
    return pretrain.main(
        [f"run_directory={tmp_path / 'run'}", f"--out={tmp_path / 'out.json'}", *arguments]
    )


def test_a_choice_is_made_once_and_told(slow: Launcher, tmp_path: Path, capfd) -> None:
    assert pretrained(tmp_path) == 0
    assert "260 of at most 400 steps with 1 x 2: about 5.9 minutes" in capfd.readouterr()[0]
    told = json.loads((tmp_path / "out.json").read_text())
    chosen = {"steps": 260, "ranks": 1, "threads": 2, "tokens_per_second_measured": 3000.0}
    assert {key: told[key] for key in chosen} == pytest.approx(chosen)
    assert slow.measured == [TWO, ONE]
    slow.rates = {TWO: 9000.0, ONE: 9000.0}
    assert pretrained(tmp_path) == 0
    assert slow.measured == [TWO, ONE], "measured again"
    assert slow.trained[0] == slow.trained[1]
    config = slow.trained[0][0]
    assert (config.steps, config.optim.warmup_steps) == (260, 26)


def test_a_choice_for_a_run_that_never_began_is_made_again(slow: Launcher, tmp_path: Path) -> None:
    pretrain.keep(Choice(steps=400, ranks=2, threads=1), RunDirectory(tmp_path / "run"))
    assert pretrained(tmp_path) == 0
    assert slow.trained[0][0].steps == 260


def test_ranks_that_a_layout_needs_are_kept(slow: Launcher, tmp_path: Path) -> None:
    del slow.rates[ONE]
    assert pretrained(tmp_path) == 0
    assert slow.trained[0][1:] == TWO


def test_a_budget_of_epochs_is_read_whole(slow: Launcher, tmp_path: Path) -> None:
    source = "data.sources={a: {corpus: c, epochs: 1}}"
    assert pretrained(tmp_path, "data.corpus=null", source) == 0
    assert (slow.trained[0][0].steps, slow.measured) == (400, [])


@pytest.mark.parametrize("pin", ["steps=30", "steps=+30", "steps=3_0"])
def test_pinned_steps_are_not_measured(slow: Launcher, tmp_path: Path, pin: str) -> None:
    assert pretrained(tmp_path, pin) == 0
    assert slow.measured == []
    told = json.loads((tmp_path / "out.json").read_text())
    assert (told["steps"], told["ranks"], told["tokens_per_second_measured"]) == (30, 2, None)


def test_a_run_that_began_without_a_choice_goes_on_as_it_was(slow: Launcher, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("steps: 400\n")
    assert pretrained(tmp_path) == 0
    config, *spread = slow.trained[0]
    assert (config.steps, tuple(spread), slow.measured) == (400, TWO, [])


def test_a_directory_with_other_files_is_left_alone(slow: Launcher, tmp_path, capfd) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("")
    assert pretrained(tmp_path) == 2
    assert "holds files but no run" in capfd.readouterr().err
    assert (slow.measured, len(list((tmp_path / "run").iterdir()))) == ([], 1)
