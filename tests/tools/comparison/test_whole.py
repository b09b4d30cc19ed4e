"""A whole comparison of tiny arms: killed, continued, and the same as one that was let alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.tools.corpus.text import write_text
from tests.tools.hub.kinds import random_instance
from tests.train.runs import TINY_RUN
from tests.train.tasks.making import ROW, SENSES, written
from tools.comparison.__main__ import main

BERT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
ENCODER = """
model:
  encoders:
    text:
      encoder:
        {width: 16, num_layers: 2, heads: 2, feed_forward: 32, max_tokens: 64, dropout: 0.0,
         norm: post, norm_epsilon: 1.0e-12, relative_positions: false, start_token: 101,
         init_from: DATA/encoder}
spans: {text: {kind: random, ratio: 0.25}}
"""
PLAN = """
configs: HERE/configs
data: DATA
encoder: HERE/theirs
text: ["prose:HERE/texts"]
arms: [gpt, given]
seeds: [1]
cores: 2
fixed_hours: 0.0
pretraining: {share: 0.5, step_seconds: 1.0}
tuning:
  multitask:
    documents: {protocol: multitask, records: 100}
    share: 0.5
    step_seconds: 1.0
    tasks: [HERE/senses.yaml]
    asked: {tasks: [HERE/senses.yaml], rows: 20}
in_context:
  demonstrations: [0, 1]
  asked: {tasks: [HERE/senses.yaml], rows: 20}
"""


def encoder_in(folder: Path, texts: Path) -> int:
    """A random BERT with a WordPiece tokenizer, as transformers writes it; entries of that one."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]  # as well
    trainer = trainers.WordPieceTrainer(
        vocab_size=400,
        special_tokens=["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]"],
        show_progress=False,
    )
    words = ["does it follow? yes no alpha omega one two three six. - 0123456789"]
    read = [path.read_text() for path in sorted(texts.rglob("*.rst"))]
    tokenizer.train_from_iterator([*words, *read], trainer)
    entries = tokenizer.get_vocab_size()
    random_instance("BertModel", BERT | {"vocab_size": entries}).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return entries


def plan_in(here: Path, data: Path) -> Path:
    """All that a plan names."""
    entries = encoder_in(here / "theirs", write_text(here / "texts"))
    chance = random.Random(0)
    for split, count in (("train", 120), ("validation", 20), ("test", 30)):
        rows: list[dict[str, Any]] = []
        for _ in range(count):
            label = chance.randrange(2)
            words = [*chance.choices(["one", "two", "three"], k=4), ("alpha", "omega")[label]]
            rows.append({**ROW, "premise": " ".join(words), "hypothesis": "six", "label": label})
        written(here / "records", *rows, split=split)
    (here / "senses.yaml").write_text(SENSES.replace("DIRECTORY", str(here / "records")))
    base = yaml.safe_load(TINY_RUN.read_text())
    del base["model"]["encoders"], base["spans"]
    base["model"]["decoder"] |= {"vocabulary": entries, "loss_chunk_tokens": None}
    arms = {"gpt": "", "given": ENCODER.replace("DATA", str(data))}
    tuned = "data: {pack: fit, attend: within}"
    (here / "configs").mkdir()
    (here / "configs/base.yaml").write_text(yaml.safe_dump(base))
    for arm, text in arms.items():
        home = here / "configs" / arm
        home.mkdir()
        (home / "pretraining.yaml").write_text(f"include: [../base.yaml]\n{text}")
        spans = "spans: {text: {kind: stored}}" if arm == "given" else ""
        (home / "multitask.yaml").write_text(f"include: [pretraining.yaml]\n{tuned}\n{spans}\n")
    file = here / "plan.yaml"
    file.write_text(PLAN.replace("HERE", str(here)).replace("DATA", str(data)))
    return file


def arguments_of(plan: Path, directory: Path, out: Path) -> list[str]:
    given = [str(plan), "--hours", "0.005", "--directory", str(directory)]
    return [*given, "--side-by-side", "2", "--out", str(out)]


def started(plan: Path, directory: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tools.comparison", *arguments_of(plan, directory, out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def numbers(out: Path) -> dict[str, Any]:
    document = json.loads(out.read_text())
    return {key: document[key] for key in ("rows", "differences", "costs", "steps")}


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_what_was_killed_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    here, data = tmp_path, tmp_path / "data"
    plan = plan_in(here, data)
    whole = started(plan, here / "whole", here / "whole.json")
    told, _ = whole.communicate()
    assert whole.returncode == 0, told
    assert "of 12 commands have run" in told
    # The corpora are there now; of the second one the runs are killed, at any moment.
    killed = started(plan, here / "killed", here / "killed.json")
    metrics = here / "killed/gpt/seed_1/multitask/metrics.jsonl"
    while not (metrics.exists() and '"kind":"train"' in metrics.read_text()):
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    kept = {path: path.stat().st_mtime_ns for path in (here / "killed").rglob("summary.json")}
    assert kept
    again = started(plan, here / "killed", here / "killed.json")
    told, _ = again.communicate()
    assert again.returncode == 0, told
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert numbers(here / "killed.json") == numbers(here / "whole.json")
    arguments = arguments_of(plan, here / "killed", here / "third.json")
    assert main(arguments) == 0
    assert json.loads((here / "third.json").read_text())["commands_run"] == 0
    assert "| multitask | inference |" in (here / "third.md").read_text()
    rows = numbers(here / "whole.json")["rows"]
    assert len(rows) == 2 * (1 + 2), "two arms, one seed: tuned, and in context twice"
