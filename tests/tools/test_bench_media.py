"""The bench of pictures compares like with like, and writes every key."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model.batch import UNSCORED
from parallel.mesh import LayoutConfig
from tools.bench.__main__ import main
from tools.bench.media import dealing, encoding, llava, pictures, reading
from tools.bench.report import BARS, MEANINGS
from tools.bench.rounds import Findings
from tools.bench.shapes import TINY
from tools.bench.training import build, num_parameters
from train.data.spans.picture import read_picture

SHAPE = TINY.pictures
AS_CLIP = SHAPE.image_encoder(as_clip=True)


def test_padded_pictures_are_encoded_as_packed_ones_are() -> None:
    sizes = pictures.skewed_sides(np.random.default_rng(1), SHAPE, 9)
    spans = pictures.spans_of(sizes, SHAPE.image_encoder())
    assert spans.num_rows < spans.num_spans * spans.longest_rows
    encoder = encoding.image_encoder(SHAPE)
    torch.testing.assert_close(encoder(spans), encoding.encode_padded(encoder, spans))


def test_llava_has_as_many_parameters() -> None:
    ours = num_parameters(build(SHAPE.seeing(AS_CLIP)))
    assert num_parameters(llava.matched(SHAPE, parameters=ours)) == pytest.approx(ours, rel=0.01)


@pytest.mark.parametrize("rows_of", [llava.even_rows, llava.varied_rows])
def test_llava_trains_on_the_same_tokens_and_pictures(rows_of: Any) -> None:
    rows = rows_of(SHAPE, AS_CLIP, seed=0)
    S = SHAPE.sequence_tokens
    ours = pictures.batch_of(pictures.packed(rows, slots=S), AS_CLIP, slots=S, attend="within")
    given = llava.as_given(rows, AS_CLIP)
    # The class shifts the labels itself.
    assert int((given.labels[:, 1:] != UNSCORED).sum()) == ours.num_scored
    items = sum(len(row.items) for row in rows)
    assert len(given.pixel_values) == items > 0
    of_pictures = given.input_ids == llava.IMAGE_TOKEN
    assert int(of_pictures.sum()) == items * SHAPE.patches == ours.spans["image"].num_vectors
    assert (given.attention_mask is None) == (len({len(row.tokens) for row in rows}) == 1)
    P = SHAPE.patch_pixels
    first = next(item for row in rows for item in row.items)
    patch = read_picture(first.data, AS_CLIP).patches[1].reshape(3, P, P)
    wanted = AS_CLIP.normalized(torch.from_numpy(patch.reshape(1, -1))).reshape(3, P, P)
    torch.testing.assert_close(given.pixel_values[0, :, :P, P : 2 * P], wanted)


def test_what_is_dealt_is_the_same_batch() -> None:
    shape = TINY.dealt
    dealt = dealing.drawn(shape, shape.image_encoder(), seed=3)
    assert len(dealt.samples) == shape.pictures
    assert sum(cost > 0 for cost in dealt.costs) == shape.pictures // 4
    assert {len(sample.tokens) for sample in dealt.samples} == {shape.sequence_tokens + 1}
    for layout, ranks in ((LayoutConfig(), 2), (LayoutConfig(pipeline=2), 1)):
        for deals in (False, True):
            parts = []
            for rank in range(ranks):
                mesh: Any = SimpleNamespace(data_rank=rank, data_size=ranks)
                parts += dealt.part(layout, micro=shape.sequences, mesh=mesh, deals=deals)
            assert sorted(place for part in parts for place in part) == list(range(shape.pictures))
            assert {len(part) for part in parts} == {shape.sequences}
            costs = [sum(dealt.costs[place] for place in part) for part in parts]
            if deals:
                half = len(parts) // 2
                assert sum(costs[:half]) < 0.6 * sum(costs) or ranks == 1


def test_torchvision_reads_what_we_read(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(pictures.drawing(np.random.default_rng(2), 200, 300))
    read, called = reading.torchvision_reader()
    assert called.startswith("torchvision.")
    grid = reading.SEEN.fixed_grid
    assert grid is not None
    (rows, columns), P = grid, reading.SEEN.patch_pixels
    ours = read_picture(path.read_bytes(), reading.SEEN).patches.reshape(rows, columns, 3, P, P)
    whole = ours.transpose(2, 0, 3, 1, 4).reshape(3, rows * P, columns * P).astype(int)
    assert np.abs(whole - read(path).numpy().astype(int)).mean() < 1


def test_what_cases_of_balance_found_is_written_together(tmp_path: Path) -> None:
    out = tmp_path / "balance.json"
    dealing.write_balance(out, {"pictures": Findings(settings={})})
    assert not out.exists()
    found = {
        name: Findings(settings={dealing.BALANCE: {name: {"naive_seconds": 2.0}}})
        for name in ("data_ranks", "stages")
    }
    dealing.write_balance(out, found)
    assert set(json.loads(out.read_text())) == {"data_ranks", "stages"}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_tiny_media_writes_every_key(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    cases = ["pictures", "llava", "waiting", "reader", "balance_ranks", "balance_stages"]
    assert main(["--tiny", "--only", *cases, "--out", str(out)]) == 0
    keys = {
        *("packed_vs_padded_images", "packed_vs_loop_images", "step_vs_llava", "packed_vs_llava"),
        *("media_wait_fraction", "decode_vs_reader"),
        *("balanced_vs_naive_data_ranks", "balanced_vs_naive_stages"),
    }
    assert set(json.loads(out.read_text())["ratios"]) == keys <= MEANINGS.keys() & BARS.keys()
    balance = json.loads((tmp_path / "balance.json").read_text())
    assert set(balance) == {"data_ranks", "stages"}
    for each in balance.values():
        assert set(each) == set(dealing.KEYS)
        assert each["loss_difference"] < 1e-5
