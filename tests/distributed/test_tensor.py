"""Layers split over two ranks compute what whole ones do, forward and backward."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model import loss
from model.layers import Layers, initialize, is_split, normal, placement, xavier
from model.loss import LinearCrossEntropy, LossKernel
from parallel.tensor import SplitDropout, TensorLayers, padded_vocabulary
from tests.distributed.semicausal_runs import Cell, mesh_of
from tests.model.encoders import test_audio, test_video
from tests.model.encoders.test_image import KINDS, packed, pictures, tiny_config
from tools.ranks import RankPool
from train.data.spans.hearing import in_blocks

ROWS = 6
IN, OUT = 8, 12
VOCABULARY = 97
PADDED = 256

Build = Callable[[Layers], nn.Module]


def split_layers(*, sequence_parallel: bool = False) -> TensorLayers:
    group = mesh_of(Cell(tensor=2)).tensor_group
    assert group is not None
    return TensorLayers(group, sequence_parallel=sequence_parallel)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def column(layers: Layers) -> nn.Module:
    return layers.column(IN, OUT, init=xavier())


def row(layers: Layers) -> nn.Module:
    return layers.row(IN, OUT, init=normal(0.3))


def vocabulary(layers: Layers) -> nn.Module:
    return layers.vocabulary(VOCABULARY, IN, init=normal(0.3))


def both(build: Build, layers: TensorLayers) -> tuple[nn.Module, nn.Module]:
    """A whole layer and this rank's part of it, with random biases too."""
    whole, part = nn.ModuleDict({"it": build(Layers())}), nn.ModuleDict({"it": build(layers)})
    for module in (whole, part):
        initialize(module, seed=5)
    with torch.no_grad():
        for name, parameter in whole["it"].named_parameters():
            if name == "bias":
                parameter.copy_(random(*parameter.shape, seed=9))
                split: Any = part["it"].bias
                split.copy_(placement(split).take(parameter))
    return whole["it"], part["it"]


def gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def same_gradients(whole: nn.Module, part: nn.Module) -> None:
    for (name, a), (_, b) in zip(whole.named_parameters(), part.named_parameters(), strict=True):
        box = placement(b).take(gradient_of(a))
        torch.testing.assert_close(gradient_of(b)[: box.shape[0]], box, msg=name)


def _columns_and_rows() -> None:
    layers = split_layers()
    rank = layers.rank
    for lead in ((ROWS,), (2, 3)):
        x = random(*lead, IN).requires_grad_()
        y = x.detach().clone().requires_grad_()
        gradient = random(*lead, OUT, seed=1)
        whole, part = both(column, layers)
        whole(x).backward(gradient)
        output = part(y)
        torch.testing.assert_close(output, whole(x).chunk(2, dim=-1)[rank])
        output.backward(gradient.chunk(2, dim=-1)[rank])
        torch.testing.assert_close(gradient_of(y), gradient_of(x))
        same_gradients(whole, part)

        x = random(*lead, IN).requires_grad_()
        y = x.detach().chunk(2, dim=-1)[rank].clone().requires_grad_()
        whole, part = both(row, layers)
        output = whole(x)
        output.backward(gradient)
        torch.testing.assert_close(part(y), output)
        part(y).backward(gradient)
        torch.testing.assert_close(gradient_of(y), gradient_of(x).chunk(2, dim=-1)[rank])
        same_gradients(whole, part)


def _rows_are_shared_between_blocks() -> None:
    """With sequence parallelism a column gathers rows and a row-parallel layer scatters them."""
    layers = split_layers(sequence_parallel=True)
    rank = layers.rank
    x = random(ROWS, IN).requires_grad_()
    mine = x.detach().chunk(2)[rank].clone().requires_grad_()
    gradient = random(ROWS, OUT, seed=1)
    whole, part = both(column, layers)
    whole(x).backward(gradient)
    part(mine).backward(gradient.chunk(2, dim=-1)[rank])
    torch.testing.assert_close(gradient_of(mine), gradient_of(x).chunk(2)[rank])
    same_gradients(whole, part)

    whole, part = both(row, layers)
    x = random(ROWS, IN).requires_grad_()
    output = whole(x)
    output.backward(gradient)
    y = part(x.detach().chunk(2, dim=-1)[rank])
    torch.testing.assert_close(y, output.chunk(2)[rank])
    y.backward(gradient.chunk(2)[rank])
    bias: Any = part.bias
    assert bias.sequence_parallel
    # Of its own rows alone; `gradients.sum_shared` adds them up.
    torch.testing.assert_close(gradient_of(bias), gradient.chunk(2)[rank].sum(0))


def _vocabulary_is_padded() -> None:
    layers = split_layers()
    rank = layers.rank
    whole, part = both(vocabulary, layers)
    weight: Any = part.weight
    assert weight.shape == (PADDED // 2, IN)
    shard = layers.shard(VOCABULARY)
    # All real tokens fit on the first rank.
    assert (shard.first, shard.size) == ((0, VOCABULARY) if rank == 0 else (VOCABULARY, 0))
    assert not weight[shard.size :].any()
    tokens = torch.tensor([0, 96, 5, 5, 63, 64, 95])
    torch.testing.assert_close(part(tokens), whole(tokens))
    gradient = random(7, IN, seed=1)
    whole(tokens).backward(gradient)
    part(tokens).backward(gradient)
    same_gradients(whole, part)
    assert not gradient_of(weight)[shard.size :].any()


def _cross_entropy(num_tokens: int, chunk_tokens: int, kernel: LossKernel) -> None:
    if kernel == "triton":
        # Without a GPU a head never chooses it: here it runs in triton's interpreter.
        from model.kernels import cross_entropy

        chosen = cross_entropy.cross_entropy_
        with mock.patch.object(loss, "chosen_cross_entropy", return_value=chosen):
            return _cross_entropy(num_tokens, chunk_tokens, "torch")
    layers = split_layers()
    slots = 11
    states = random(slots, IN, seed=3)
    targets = torch.randint(num_tokens, (slots,), generator=torch.Generator().manual_seed(4))
    targets[:2] = torch.tensor([0, num_tokens - 1])
    results: list[tuple[Tensor, Tensor, Tensor]] = []
    for kind in (Layers(), layers):
        table = nn.ModuleDict({"it": kind.vocabulary(num_tokens, IN, init=normal(0.3))})
        initialize(table, seed=5)
        weight: Any = table["it"].weight
        head = LinearCrossEntropy(weight, chunk_tokens=chunk_tokens, shard=kind.shard(num_tokens))
        x = states.clone().requires_grad_()
        # As blocks end: what the head makes of whole rows is a part of a sum over ranks.
        found = head(kind.leave(x), targets, slots - 1)
        (found.total * 0.5).backward()
        results.append((found.terms, gradient_of(x), gradient_of(weight)))
        if kind is layers:
            shard = layers.shard(num_tokens)
            assert not gradient_of(weight)[shard.size :].any(), "padding rows"
            assert not weight[shard.size :].any()
    (terms, grad_states, grad_weight), (its_terms, its_states, its_weight) = results
    torch.testing.assert_close(its_terms, terms)
    torch.testing.assert_close(its_states, grad_states)
    shard = layers.shard(num_tokens)
    torch.testing.assert_close(
        its_weight[: shard.size], grad_weight[shard.first : shard.first + shard.size]
    )
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(
            states[: slots - 1] @ _whole_table(num_tokens).T, targets[: slots - 1], reduction="none"
        )
    torch.testing.assert_close(its_terms[: slots - 1], expected)
    assert its_terms[-1] == 0


def _whole_table(num_tokens: int) -> Tensor:
    table = nn.ModuleDict({"it": Layers().vocabulary(num_tokens, IN, init=normal(0.3))})
    initialize(table, seed=5)
    weight: Any = table["it"].weight
    return weight


def _share_enter_leave() -> None:
    for sequence_parallel in (False, True):
        layers = split_layers(sequence_parallel=sequence_parallel)
        rank = layers.rank
        values = random(ROWS, IN).requires_grad_()
        gradient = random(ROWS, IN, seed=2)
        mine = layers.share(values)
        assert torch.equal(mine, values.chunk(2, dim=-1)[rank])
        mine.backward(gradient.chunk(2, dim=-1)[rank])
        assert torch.equal(gradient_of(values), gradient), "summed over the ranks"

        rows = random(ROWS, IN).requires_grad_()
        entered = layers.enter(rows)
        expected = rows.chunk(2)[rank] if sequence_parallel else rows
        assert torch.equal(entered, expected)
        entered.backward(gradient.chunk(2)[rank] if sequence_parallel else gradient)
        assert torch.equal(gradient_of(rows), gradient)

        inside = expected.detach().clone().requires_grad_()
        left = layers.leave(inside)
        assert torch.equal(left, rows)
        # Each rank has a part of the gradient of whole rows.
        left.backward(gradient * (1.0 if rank == 0 else 2.0))
        total = gradient * 3
        torch.testing.assert_close(
            gradient_of(inside), total.chunk(2)[rank] if sequence_parallel else total
        )


def _whole_layers_are_whole() -> None:
    for sequence_parallel in (False, True):
        layers = split_layers(sequence_parallel=sequence_parallel)
        modules = [
            layers.linear(IN, OUT, init=xavier()),
            layers.table(7, IN, init=normal(0.1)),
            layers.norm(IN),
        ]
        assert not any(is_split(p) for module in modules for p in module.parameters())
        marks = {getattr(p, "sequence_parallel", False) for p in modules[2].parameters()}
        assert marks == {sequence_parallel}


@pytest.mark.parametrize(
    "work",
    [
        _columns_and_rows,
        _rows_are_shared_between_blocks,
        _vocabulary_is_padded,
        _share_enter_leave,
        _whole_layers_are_whole,
    ],
    ids=lambda work: work.__name__.strip("_"),
)
def test_split_layers(rank_pools: dict[int, RankPool], work: Callable[[], None]) -> None:
    rank_pools[2].run(work)


def _image_encoders(options: dict[str, Any]) -> None:
    """All of an encoder; biases of scores are those of a rank's own heads."""
    config = tiny_config(**options | {"heads": 2})
    spans = packed(config, pictures(config, [(12, 16), (40, 3)]))

    def build(layers: Layers) -> nn.Module:
        return config.build(vocabulary=8, layers=layers, recompute="selective")

    whole, part = both(build, split_layers())
    output = whole(spans)
    gradient = random(*output.shape, seed=1)
    output.backward(gradient)
    torch.testing.assert_close(part(spans), output)
    part(spans).backward(gradient)
    same_gradients(whole, part)


@pytest.mark.parametrize("kind", ["beit", "beit, of another size", "clip", "native, class kept"])
def test_split_image_encoders(rank_pools: dict[int, RankPool], kind: str) -> None:
    rank_pools[2].run(_image_encoders, KINDS[kind])


def _audio_encoders(options: dict[str, Any]) -> None:
    """Blocks are split, what stands before them is whole on every rank."""
    if "channels" in options["front"]:
        # Norms over a few channels of a random front blow differences of rounding up.
        options = options | {"front": options["front"] | {"channels": [24, 24, 24]}}
    config = test_audio.tiny_config(**options | {"heads": 2})
    # Without the one that is nearly silence, of which norms have vast gradients.
    sounds = [in_blocks(wave, config) for wave in test_audio.waves(config)[:2]]
    spans = test_audio.packed(config, sounds)

    def build(layers: Layers) -> nn.Module:
        return config.build(vocabulary=8, layers=layers, recompute="selective")

    whole, part = both(build, split_layers())
    output = whole(spans)
    gradient = random(*output.shape, seed=1)
    output.backward(gradient)
    torch.testing.assert_close(part(spans), output)
    part(spans).backward(gradient)
    same_gradients(whole, part)


@pytest.mark.parametrize("kind", ["mel, padded", "wave, base", "wave, each"])
def test_split_audio_encoders(rank_pools: dict[int, RankPool], kind: str) -> None:
    rank_pools[2].run(_audio_encoders, test_audio.KINDS[kind])


def _video_encoders(options: dict[str, Any]) -> None:
    """Either attention is split by heads; the layer behind that over time is whole."""
    config = test_video.tiny_config(**options | {"heads": 2})
    spans = test_video.packed(config, test_video.clips(config))

    def build(layers: Layers) -> nn.Module:
        return config.build(vocabulary=8, layers=layers, recompute="selective")

    # In 64 bits: divided attention, whose gradients are large, differs by 1e-5 in 32.
    whole, part = (encoder.double() for encoder in both(build, split_layers()))
    output = whole(spans)
    gradient = random(*output.shape, seed=1).double()
    output.backward(gradient)
    torch.testing.assert_close(part(spans), output)
    part(spans).backward(gradient)
    same_gradients(whole, part)


@pytest.mark.parametrize("kind", ["videomae, native", "timesformer", "timesformer, native"])
def test_split_video_encoders(rank_pools: dict[int, RankPool], kind: str) -> None:
    rank_pools[2].run(_video_encoders, test_video.KINDS[kind])


@pytest.mark.parametrize("kernel", ["torch", "triton"])
@pytest.mark.parametrize("chunk_tokens", [3, 64])
@pytest.mark.parametrize(
    "num_tokens",
    [
        97,  # the second rank has padding alone
        200,  # and here real tokens and padding
        256,
    ],
)
def test_cross_entropy_over_a_split_vocabulary(
    rank_pools: dict[int, RankPool], num_tokens: int, chunk_tokens: int, kernel: LossKernel
) -> None:
    rank_pools[2].run(_cross_entropy, num_tokens, chunk_tokens, kernel)


def test_padding_goes_up_to_whole_tiles_on_every_rank() -> None:
    assert padded_vocabulary(97, tensor=1) == 128
    assert padded_vocabulary(97, tensor=2) == PADDED
    assert padded_vocabulary(256, tensor=2) == 256
    assert padded_vocabulary(64_000, tensor=8) == 64_512


def _sums_and_maxima() -> None:
    shard = split_layers().shard(VOCABULARY)
    rank = dist.get_rank()
    values = torch.tensor([1.0, -2.0]) * (1 + rank)
    assert shard.maximum(values.clone()).tolist() == [2.0, -2.0]
    assert shard.sum(values.clone()).tolist() == [3.0, -6.0]


def test_what_joins_the_shards(rank_pools: dict[int, RankPool]) -> None:
    rank_pools[2].run(_sums_and_maxima)


def _dropped(sequence_parallel: bool) -> list[Tensor]:
    """What is left of ones: twice from one seed, once in evaluation, and the next draw."""
    layers = split_layers(sequence_parallel=sequence_parallel)
    module = layers.dropout(0.25)
    x = torch.ones(64, 32)
    kept: list[Tensor] = []
    for _ in range(2):
        torch.manual_seed(11)
        kept.append(module(x))
    kept.append(module(x))
    module.eval()
    kept.append(module(x))
    return kept


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_dropout_is_equal_where_rows_are_and_differs_where_they_differ(
    rank_pools: dict[int, RankPool], sequence_parallel: bool
) -> None:
    answers = rank_pools[2].run(_dropped, sequence_parallel)
    for first, again, later, evaluated in answers:
        assert torch.equal(first, again), "reproducible from the seed"
        assert not torch.equal(first, later)
        assert torch.equal(evaluated, torch.ones_like(evaluated))
        assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
        assert (first == 0).float().mean().item() == pytest.approx(0.25, abs=0.04)
    (one, *_), (other, *_) = answers
    assert torch.equal(one, other) is not sequence_parallel
    if sequence_parallel:
        # Independent: both are dropped as often as chance has it.
        both_dropped = ((one == 0) & (other == 0)).float().mean().item()
        assert both_dropped == pytest.approx(0.25**2, abs=0.03)


def test_split_dropout_has_the_gradient_of_what_it_kept() -> None:
    module = SplitDropout(0.5, rank=1)
    x = torch.ones(32, 8, requires_grad=True)
    torch.manual_seed(0)
    y = module(x)
    y.sum().backward()
    assert torch.equal(gradient_of(x), y.detach())


def test_no_dropout_is_nothing_at_all(rank_pools: dict[int, RankPool]) -> None:
    assert rank_pools[2].run(_no_dropout) == [True, True]


def _no_dropout() -> bool:
    return all(
        isinstance(split_layers(sequence_parallel=shared).dropout(0.0), nn.Identity)
        for shared in (False, True)
    )
