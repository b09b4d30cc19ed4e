"""The arithmetic of operations agrees with what the project measured and with the bench's count."""

from pathlib import Path

import pytest

from model.encoders.protocol import SpanLoad
from model.semicausal import ModelConfig
from parallel.costs import Load, head_products, model_work, usual_load
from train.config import RunConfig
from train.config_files import load as load_config

EXPERIMENT = str(Path(__file__).parents[2] / "configs/experiment/metalm_1p3b.yaml")


@pytest.fixture(scope="module")
def metalm() -> ModelConfig:
    return load_config(RunConfig, [EXPERIMENT]).model


@pytest.mark.parametrize(
    ("vocabulary", "share", "decoder_teraflops"), [(50_000, 0.25, 5.78), (64_000, 0.27, 5.90)]
)
def test_forward_of_the_1p3b(
    metalm: ModelConfig, vocabulary: int, share: float, decoder_teraflops: float
) -> None:
    config = _with_decoder(metalm, vocabulary=vocabulary)
    load = usual_load(config, sequences=1, sequence_tokens=2048, span_share=share)
    work = model_work(config, load)
    head_on_all = head_products(2048, vocabulary, scored=load.slots)
    decoder = 24 * work.layer.forward + head_on_all
    assert decoder / 1e12 == pytest.approx(decoder_teraflops, abs=0.01)
    encoder = sum(block.forward for block in work.encoder)
    assert 0.054 <= encoder / decoder <= 0.059


def test_units_of_a_decoder_layer(metalm: ModelConfig) -> None:
    load = usual_load(metalm, sequences=1, sequence_tokens=2048, span_share=0.27)
    work = model_work(metalm, load)
    assert work.head.forward / work.layer.forward == pytest.approx(1.75, abs=0.03)
    on_all = head_products(2048, 64_000, scored=load.slots)
    assert on_all / work.layer.forward == pytest.approx(2.4, abs=0.01)
    assert work.first / work.layer.training == pytest.approx(1.55, abs=0.05)
    frozen = model_work(_with_encoder(metalm, init_from="elsewhere"), load)
    assert frozen.first / frozen.layer.training == pytest.approx(0.6, abs=0.05)


def test_training_of_the_semi_causal_model_over_a_gpt(metalm: ModelConfig) -> None:
    load = usual_load(metalm, sequences=1, sequence_tokens=2048, span_share=0.25)
    gpt = ModelConfig(decoder=metalm.decoder, encoders={})
    plain = model_work(gpt, Load(sequences=1, sequence_tokens=2048))
    causal = 24 * plain.layer.training + plain.head.training

    def over_causal(config: ModelConfig) -> float:
        work = model_work(config, load)
        return (24 * work.layer.training + work.head.training + work.first) / causal

    assert over_causal(metalm) == pytest.approx(1.03, abs=0.01)
    assert over_causal(_with_encoder(metalm, init_from="elsewhere")) == pytest.approx(1.0, abs=0.01)


def test_what_recomputation_adds(metalm: ModelConfig) -> None:
    load = usual_load(metalm, sequences=2, sequence_tokens=1024, span_share=0.25)
    none, selective, full = (
        model_work(metalm, load, recompute=mode).layer for mode in ("none", "selective", "full")
    )
    assert selective.training - none.training == none.attention
    assert full.training - none.training == none.forward


def test_frozen_layers_recompute_nothing(metalm: ModelConfig) -> None:
    config = _with_encoder(metalm, init_from="elsewhere", trainable_layers=2)
    load = usual_load(config, sequences=1, sequence_tokens=2048, span_share=0.25)
    work = model_work(config, load, recompute="full")
    assert [block.training / block.forward for block in work.encoder] == [1.0] * 22 + [4.0] * 2


def test_slots_that_are_scored() -> None:
    spans = SpanLoad(vectors=10, spans=2, longest=6)
    load = Load(sequences=2, sequence_tokens=20, spans={"text": spans})
    # Two spans of five: of each, four interior tokens are not scored.
    assert load.scored == 40 - 8


def _with_decoder(config: ModelConfig, **changes: object) -> ModelConfig:
    tree = config.model_dump()
    tree["decoder"] |= changes
    return ModelConfig.model_validate(tree)


def _with_encoder(config: ModelConfig, **changes: object) -> ModelConfig:
    tree = config.model_dump()
    tree["encoders"]["text"]["encoder"] |= changes
    return ModelConfig.model_validate(tree)
