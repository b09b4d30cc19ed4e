"""Masked sounds: masks, contrast and units, beside plain loops and transformers' own sums."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model import torchvision_free

torchvision_free.install()

from transformers.models.wav2vec2 import modeling_wav2vec2  # noqa: E402

from model.layers import initialize  # noqa: E402
from model.objectives.alone import EncoderAlone  # noqa: E402
from model.objectives.contrast import (  # noqa: E402
    ContrastConfig,
    ContrastedSounds,
    contrastive,
    same_codes,
    unevenness,
)
from model.objectives.units import (  # noqa: E402
    MaskedUnitsConfig,
    SoundsOfUnits,
    unit_loss,
)
from tests.model.encoders import test_audio  # noqa: E402
from train.data.masks import clusters  # noqa: E402
from train.data.masks.kinds import masking  # noqa: E402
from train.data.masks.sounds import masked_rows, others_of  # noqa: E402
from train.data.spans.hearing import in_blocks  # noqa: E402
from train.data.tokens import SpecialTokens  # noqa: E402
from train.errors import DataError  # noqa: E402

CONTRAST = ContrastConfig(
    kind="contrast", starts=0.2, mask_rows=2, width=8, negatives=5, groups=2, entries=6,
    code_width=8,
)  # fmt: skip
FRONTS = {"log_mel": "mel", "waveform": "wave, each"}


def heard(kind: str, objective: Any) -> tuple[Any, Any, Any]:
    """An encoder, the spans of some sounds, and the same masked."""
    config = test_audio.tiny_config(**test_audio.KINDS[FRONTS[kind]])
    items = [in_blocks(wave, config) for wave in test_audio.waves(config)]
    spans = test_audio.packed(config, items, sequences=2)
    masks = masking(objective, config, modality="audio", seed=1, special=SpecialTokens())
    return config, spans, masks.masked(spans, [np.random.default_rng(n) for n in range(len(items))])


@pytest.mark.parametrize("count", [2, 3, 7, 50, 400])
def test_masks_are_runs_and_leave_something_to_hear(count: int) -> None:
    shares: list[float] = []
    for seed in range(40):
        rows = masked_rows(count, np.random.default_rng(seed), starts=0.065, mask_rows=10)
        assert 0 < len(rows) < count
        assert (np.diff(rows) > 0).all()
        length = min(10, count // 2)
        runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
        if count > 20:
            assert all(len(run) >= length for run in runs)
        shares.append(len(rows) / count)
    if count == 400:  # 0.49 in the paper, of longer sounds
        assert 0.44 < np.mean(shares) < 0.51
    assert not len(masked_rows(count, None, starts=0.065, mask_rows=10))
    assert not len(masked_rows(1, np.random.default_rng(0), starts=0.065, mask_rows=10))


def test_others_are_others() -> None:
    found = others_of(6, 300, np.random.default_rng(0))
    for own, others in enumerate(found):
        assert {*others.tolist()} == {*range(6)} - {own}
    assert others_of(1, 3, np.random.default_rng(0)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("kind", FRONTS)
def test_what_is_masked_is_told_from_others_of_its_sound(kind: str) -> None:
    config, spans, found = heard(kind, CONTRAST)
    masked = found.spans
    assert isinstance(masked, ContrastedSounds)
    assert found.vectors.tolist() == masked.masked.tolist()
    sizes = [(count, config.rate) for count in test_audio.counts_of(config)]
    owner = np.repeat(np.arange(len(sizes)), [config.item_vectors(size) for size in sizes])
    mine = owner[masked.masked]
    assert {*mine.tolist()} == {0, 1, 3, 4, 5}, "of one row nothing is masked"
    assert (mine[masked.negatives] == mine[:, None]).all()
    for own, others in enumerate(masked.negatives.tolist()):
        assert own not in others or (mine == mine[own]).sum() == 1
    assert torch.equal(masked.whole.blocks, spans.blocks)


@pytest.mark.parametrize("kind", FRONTS)
def test_blocks_do_not_see_what_is_masked(kind: str) -> None:
    """What the front has made of it reaches the target, and never the context."""
    config, _, found = heard(kind, CONTRAST)
    model = EncoderAlone("audio", config, CONTRAST, vocabulary=8).eval()
    initialize(model, seed=1)
    encoder: Any = model.encoders["audio"]
    masker, spans = model.objective.masker, found.spans
    with torch.no_grad():
        rows = encoder.rows(spans.whole)
        context = masker(encoder, rows, spans)
        other = rows.clone()
        other[spans.rows] = other[spans.rows].roll(1, dims=1)
        assert torch.equal(masker(encoder, other, spans), context)
        seen = torch.ones(len(rows), dtype=torch.bool)
        seen[spans.rows] = False
        other[seen] = other[seen].roll(1, dims=1)  # a constant would be normed away
        assert not torch.equal(masker(encoder, other, spans), context)
        # Nothing masked, an encoder's two halves are the encoder.
        assert torch.equal(encoder.mixed(rows, spans.whole), encoder(spans.whole))


def test_contrast_is_a_sum_over_rows() -> None:
    torch.manual_seed(0)
    context, codes = torch.randn(7, 6), torch.randn(7, 6)
    codes[4] = codes[2]
    negatives = torch.from_numpy(others_of(7, 9, np.random.default_rng(0)))
    negatives[2, 0] = 4
    found = contrastive(context, codes, negatives, same_codes(codes, negatives))
    for row in range(7):
        others = [n for n in negatives[row].tolist() if not torch.equal(codes[n], codes[row])]
        scores = [F.cosine_similarity(context[row], codes[n], dim=0) / 0.1 for n in [row, *others]]
        wanted = -torch.log(scores[0].exp() / sum(score.exp() for score in scores))
        torch.testing.assert_close(found[row], wanted)
    assert len({*negatives[2].tolist()} & {4}) == 1


def test_scores_and_diversity_are_wav2vecs() -> None:
    torch.manual_seed(0)
    context, codes = torch.randn(7, 6), torch.randn(7, 6)
    negatives = torch.from_numpy(others_of(7, 9, np.random.default_rng(0)))
    compare: Any = modeling_wav2vec2.Wav2Vec2ForPreTraining.compute_contrastive_logits
    theirs = compare(codes[None], codes[negatives].transpose(0, 1), context[None].float(), 0.1)
    wanted = F.cross_entropy(
        theirs[:, :].reshape(10, 7).T, torch.zeros(7, dtype=torch.long), reduction="none"
    )
    found = contrastive(context, codes, negatives, same_codes(codes, negatives))
    torch.testing.assert_close(found, wanted)
    likely = torch.randn(11, 2, 6).softmax(dim=-1)
    perplexity = modeling_wav2vec2.Wav2Vec2GumbelVectorQuantizer._compute_perplexity(likely)
    torch.testing.assert_close(unevenness(likely), (12 - perplexity) / 12, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", FRONTS)
def test_everything_learns_from_contrast(kind: str) -> None:
    config, _, found = heard(kind, CONTRAST)
    model = EncoderAlone("audio", config, CONTRAST, vocabulary=8)
    initialize(model, seed=1)
    torch.manual_seed(0)
    loss = model.objective(model.encoders["audio"], found.spans)
    assert len(loss.terms) == len(found.vectors)
    loss.total.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert not silent
    # Codes are entries of the table, in training as well.
    quantizer = model.objective.quantizer
    codes, _ = quantizer(torch.randn(20, config.width))
    table = quantizer.codes.weight.view(2, 6, 4)
    for group, part in enumerate(codes.view(20, 2, 4).unbind(dim=1)):
        assert (torch.cdist(part, table[group]).min(dim=1).values < 1e-5).all()


def units_of(path: Path, count: int = 5) -> MaskedUnitsConfig:
    return MaskedUnitsConfig(
        kind="masked_units", starts=0.2, mask_rows=2, width=8, units=count, clusters=str(path)
    )


@pytest.mark.parametrize("kind", FRONTS)
def test_units_are_those_of_masked_rows(kind: str, tmp_path: Path) -> None:
    """Each is the nearest middle of its own row; those of rows that are seen have no part."""
    config, spans, _ = heard(kind, CONTRAST)
    features = clusters.row_features(spans, config)
    assert features.shape == (spans.num_vectors, clusters.NUM_FEATURES)
    middles = clusters.clustered(features, count=5, seed=0)
    clusters.save_middles(tmp_path / "units.safetensors", middles)
    objective = units_of(tmp_path / "units.safetensors")
    _, _, found = heard(kind, objective)
    masked = found.spans
    assert isinstance(masked, SoundsOfUnits)
    for vector, unit in zip(found.vectors.tolist(), masked.units.tolist(), strict=True):
        assert unit == ((features[vector] - middles) ** 2).sum(axis=1).argmin()
    model = EncoderAlone("audio", config, objective, vocabulary=8)
    initialize(model, seed=1)
    loss = model.objective(model.encoders["audio"], masked)
    encoder: Any = model.encoders["audio"]
    judge = model.objective
    rows = encoder.rows(masked.whole).clone()
    rows[masked.rows] = judge.masker.mask_embedding.weight[0]
    vectors = judge.masker.narrowing(encoder.mixed(rows, masked.whole))
    wanted = torch.tensor(0.0)
    for vector, unit in zip(found.vectors.tolist(), masked.units.tolist(), strict=True):
        scores = F.cosine_similarity(vectors[vector], judge.unit_embedding.weight, dim=1) / 0.1
        wanted = wanted - scores.log_softmax(0)[unit]
    torch.testing.assert_close(loss.total, wanted)
    torch.testing.assert_close(loss.terms.sum(), loss.total)
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_sound_alone_has_the_same_features() -> None:
    config, spans, _ = heard("log_mel", CONTRAST)
    whole = clusters.row_features(spans, config)
    begin = 0
    for wave in test_audio.waves(config):
        alone = test_audio.packed(config, [in_blocks(wave, config)])
        found = clusters.row_features(alone, config)
        np.testing.assert_allclose(whole[begin : begin + len(found)], found, atol=1e-5)
        begin += len(found)
    assert begin == len(whole)


def test_clusters_find_what_lies_together() -> None:
    random = np.random.default_rng(0)
    middles = random.normal(size=(4, 6)) * 10
    owners = random.integers(4, size=400)
    rows = (middles[owners] + random.normal(size=(400, 6)) * 0.1).astype(np.float32)
    found = clusters.clustered(rows, count=4, seed=1)
    mine = clusters.nearest_of(rows, found)
    assert len({*zip(mine.tolist(), owners.tolist(), strict=True)}) == 4
    assert np.array_equal(found, clusters.clustered(rows, count=4, seed=1))
    with pytest.raises(DataError, match="3 rows are too few for 4 clusters"):
        clusters.clustered(rows[:3], count=4, seed=1)


def test_middles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "units.safetensors"
    with pytest.raises(DataError, match=r"objective\.clusters: .* write it with python -m tools"):
        clusters.read_middles(path, count=3)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        clusters.read_middles(path, count=3)
    clusters.save_middles(path, np.zeros((4, 26), np.float32))
    with pytest.raises(DataError, match=r"of shape \[4, 26\], and objective\.units asks for \[3"):
        clusters.read_middles(path, count=3)
    assert len(clusters.read_middles(path, count=4)) == 4


def test_unit_loss_is_cross_entropy() -> None:
    torch.manual_seed(0)
    context, vectors, units = torch.randn(5, 4), torch.randn(3, 4), torch.tensor([0, 2, 1, 1, 0])
    found = unit_loss(context, vectors, units)
    for row, unit in enumerate(units.tolist()):
        chances = (F.cosine_similarity(context[row], vectors, dim=1) / 0.1).softmax(0)
        torch.testing.assert_close(found[row], -chances[unit].log())
