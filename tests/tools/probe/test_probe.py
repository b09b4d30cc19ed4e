"""Linear probes: what they say, that they can fail, and what is kept of them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests import pictures
from tests.corpora import write_corpus
from tests.tiny_pictures import PICTURES
from tests.train.runs import run
from tools.probe.__main__ import main
from tools.probe.encoding import Probed
from tools.probe.kept import keep
from tools.probe.linear import answers
from train.data.spans.picture import read_picture
from train.errors import DataError
from train.loading import load_config
from train.storage.place import Place

MASKED = "objective={kind: masked_patches, encoder: image, width: 16, heads: 2, feed_forward: 32}"


def test_a_probe_finds_what_lies_apart_and_nothing_in_noise() -> None:
    random = torch.Generator().manual_seed(0)
    labels = [str(number % 3) for number in range(300)]
    noise = torch.randn(300, 8, generator=random)
    telling = noise.clone()
    telling[range(300), [number % 3 for number in range(300)]] += 6
    asked = [None] * 150
    right = np.array(labels[150:])
    found = np.array(answers(telling[:150], labels[:150], telling[150:], asked))
    assert (found == right).mean() > 0.9
    blind = np.array(answers(noise[:150], labels[:150], noise[150:], asked))
    assert (blind == right).mean() < 0.5


def test_choices_are_those_that_were_fitted() -> None:
    x = torch.eye(12)
    labels = [name for name in "abcdefghijkl"]
    offered = [["a", "b"], ["z"], ["z", "c"], None]
    found = answers(x.repeat(4, 1), labels * 4, x[[1, 1, 1, 1]], offered)
    assert found[0] == "b"
    assert found[1:3] == ["", "c"]
    assert found[3] == "b"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("probe")
    corpus = pictures.build(root / "corpus", pictures.colours(60, plain=6))
    run(corpus, root / "run", *PICTURES, MASKED, "steps=4")
    draw = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 20)):
        names = [list(pictures.COLOURS)[draw.integers(3)] for _ in range(count)]
        rows = [
            {"picture": pictures.png(16, 24, colour=pictures.COLOURS[name]), "name": name}
            for name in names
        ]
        pq.write_table(pa.Table.from_pylist(rows), root / f"{split}.parquet")
    return root


def test_colours_are_told_apart(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained / "out.json"
    arguments = [str(trained / "run"), str(trained), "--item", "picture", "--label", "name"]
    assert main([*arguments, "--stage", "patches", "--out", str(out)]) == 0
    assert main([*arguments, "--stage", "patches", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())
    assert row["stage"] == "patches"
    assert row["objective"] == "masked_patches"
    assert (row["fitted_rows"], row["asked_rows"], row["classes"]) == (30, 20, 3)
    assert row["probe_pretrained"] >= 0.95
    assert row["difference"] == pytest.approx(row["probe_pretrained"] - row["probe_random"])
    assert "patches: " in capsys.readouterr().out
    assert main([*arguments[:-1], "nothing", "--out", str(out)]) != 0
    assert "nothing is no label: name the column of one" in capsys.readouterr().err
    assert main([*arguments, "--modality", "sound", "--out", str(out)]) != 0
    assert "--modality: sound: name one of image" in capsys.readouterr().err


def test_means_are_those_of_each_alone(trained: Path) -> None:
    """Packed together as one by one; drawn as the run began, trained as it ended."""
    place = Place.of(trained / "run")
    probed = Probed(place, load_config(place))
    sizes = [(16, 24), (40, 9), (8, 8)]
    items = [read_picture(pictures.png(*size), probed.encoder) for size in sizes]  # pyright: ignore[reportArgumentType]  # of pictures
    drawn, ended = probed.as_drawn(), probed.as_trained()
    together = probed.means(ended, items)
    alone = torch.cat([probed.means(ended, [item]) for item in items])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(probed.means(drawn, items), together)


def test_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Read with the run's own tokenizer."""
    write_corpus(tmp_path / "corpus")
    replaced = "objective={kind: replaced_tokens, width: 8, heads: 2, feed_forward: 16}"
    run(tmp_path / "corpus", tmp_path / "run", replaced, "spans.text.ratio=0.5", "steps=2")
    words = {"kernel": "page of memory", "sea": "waves and wind"}
    for split, count in (("train", 20), ("test", 10)):
        rows = [
            {"text": f"{words[name]} {number}", "of": name}
            for number in range(count // 2)
            for name in words
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [str(tmp_path / "run"), str(tmp_path), "--item", "text", "--label", "of"]
    assert main([*arguments, "--out", str(tmp_path / "out.json")]) == 0
    assert "on the same 10 rows" in capsys.readouterr().out


def test_rows_of_several_commands_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    keep(out, "stage", [{"stage": "a", "value": 1}])
    keep(out, "class", [{"class": "B", "value": 2}])
    keep(out, "stage", [{"stage": "a", "value": 3}])
    assert json.loads(out.read_text()) == [{"class": "B", "value": 2}, {"stage": "a", "value": 3}]
    out.write_text("{}")
    with pytest.raises(DataError, match="holds no rows"):
        keep(out, "stage", [])
