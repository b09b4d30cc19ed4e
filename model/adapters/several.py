"""Several adapters on one model, one for each sequence of a batch; for generation and serving.

put_adapter(model, "french", config, values)
with rows_use(model, ["french", None], slots=S):
...                                            # forwards of this batch
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.adapters.kinds import LoraConfig
from model.adapters.layer import ADAPTER, Adapted, plain_name
from model.adapters.tuning import Names, Tuning, put_on
from model.batch import PackedSpans
from model.semicausal import SemiCausal


@torch.no_grad()
def put_adapter(
    model: SemiCausal, name: str, config: LoraConfig, values: Mapping[str, Tensor]
) -> None:
    """Put a low-rank adapter on a model, which goes on computing without it.

    Args:
        model: whole, in one process.
        name: that `rows_use` asks for; letters, digits, `_` and `-`.
        config: what the adapter was made with.
        values: its tensors, by their names in a model.

    Raises:
        ValueError: there is an adapter of this name, or the tensors do not fit.
    """
    if name in adapters_of(model):
        raise ValueError(f"there is an adapter called {name}: choose another name")
    if not all(letter.isalnum() or letter in "_-" for letter in name) or not name:
        raise ValueError(f"{name!r} is no name of an adapter: use letters, digits, _ and -")
    tuning, names = Tuning(lora=config), Names.of(model.config)
    shapes = tuning.adapter_shapes(names)
    if {n: tuple(value.shape) for n, value in values.items()} != shapes:
        raise ValueError("these are not the tensors of the adapter's layers: read another file")
    put_on(model, tuning, names, name=name, is_active=False)
    own = dict(model.named_parameters())
    for key in shapes:
        target = own[key.replace(f".{ADAPTER}.", f".{name}.")]
        target.copy_(values[key])
        target.requires_grad_(False)


def adapters_of(model: nn.Module) -> list[str]:
    """Names of the adapters on a model, those that are computed for all rows included."""
    layers = [module for module in model.modules() if isinstance(module, Adapted)]
    return sorted({name for layer in layers for name in layer.lora_A})


@contextmanager
def rows_use(model: SemiCausal, names: Sequence[str | None], *, slots: int) -> Generator[None]:
    """Within the context, each sequence of a batch is computed with an adapter of its own.

    Args:
        model: with adapters from `put_adapter`.
        names: of the adapter of each sequence; None for the base alone.
        slots: S of the forward that reads spans, by which these belong to sequences.

    Raises:
        ValueError: an adapter is not there.
    """
    there = adapters_of(model)
    for name in names:
        if name is not None and name not in there:
            known = f"there are {', '.join(there)}" if there else "there is none"
            raise ValueError(f"there is no adapter called {name}; {known}")
    used = sorted({name for name in names if name is not None})
    device = next(model.parameters()).device
    numbers = [-1 if name is None else used.index(name) for name in names]
    of_sequences = torch.tensor(numbers, device=device)
    with ExitStack() as stack:
        if len(set(names)) == 1:  # nothing to choose between
            for layer in _adapted(model).values():
                _choose(stack, layer, partial(_alone, used))
            yield
            return
        of_spans: dict[str, _Owners] = {}
        for modality, encoder in model.encoders.items():
            queries = model.config.encoders[modality].connector.item_slots
            owners = of_spans[modality] = _Owners(of_sequences, slots, queries)
            handle = encoder.register_forward_pre_hook(owners.notice)
            stack.callback(handle.remove)
        for name, layer in _adapted(model).items():
            part, _, rest = name.partition(".")
            owner: Callable[[Tensor], Tensor] = partial(_of_slots, of_sequences)
            if part in ("encoders", "connectors"):
                spans = of_spans[rest.partition(".")[0]]
                owner = spans.of_rows if part == "encoders" else spans.of_vectors
            _choose(stack, layer, partial(_by_row, used, owner))
        yield


def _adapted(model: nn.Module) -> dict[str, Adapted]:
    return {plain_name(n): m for n, m in model.named_modules() if isinstance(m, Adapted)}


def _choose(stack: ExitStack, layer: Adapted, choice: Any) -> None:
    layer.choice = choice
    stack.callback(setattr, layer, "choice", None)


def _alone(used: Sequence[str], layer: Adapted, x: Tensor, out: Tensor) -> Tensor:
    for name in used:
        out = layer.beside(x, out, name)
    return out


def _by_row(
    used: Sequence[str], owner: Callable[[Tensor], Tensor], layer: Adapted, x: Tensor, out: Tensor
) -> Tensor:
    owners = owner(x)
    for number, name in enumerate(used):
        if name in layer.lora_A:
            rows = (owners == number).nonzero().squeeze(1)
            mine = layer.beside(x.index_select(0, rows), out.index_select(0, rows), name)
            out = out.index_copy(0, rows, mine)
    return out


def _of_slots(of_sequences: Tensor, x: Tensor) -> Tensor:
    """Decoder rows lie sequence after sequence."""
    return of_sequences.repeat_interleave(x.shape[0] // len(of_sequences))


class _Owners:
    """To which sequence, and so to which adapter, each packed row of an encoder belongs.

    Args:
        of_sequences: [B] number of each sequence's adapter.
        slots: S.
        queries: Q, slots of each item where the connector reads items whole.
    """

    def __init__(self, of_sequences: Tensor, slots: int, queries: int | None):
        self._of_sequences, self._slots, self._queries = of_sequences, slots, queries
        self._spans: PackedSpans | None = None

    def notice(self, _: nn.Module, inputs: tuple[PackedSpans]) -> None:
        """Keep what the encoder reads now."""
        self._spans = inputs[0]

    def of_vectors(self, vectors: Tensor) -> Tensor:
        """[M] of each row of a connector; of padding, as if it lay in the last sequence."""
        spans, rows = self._spans, vectors.shape[0]
        assert spans is not None, "connectors read what encoders have written"
        num_queries = spans.num_items * (self._queries or 0)
        if spans.item_cells is None or rows == num_queries:
            return self._of_slots(rows)
        # What attention looks at: the encoder's vectors, and the queries behind them.
        return torch.cat([self._of_vectors(rows - num_queries), self._of_slots(num_queries)])

    def _of_vectors(self, num_vectors: int) -> Tensor:
        """Of so many vectors of the encoder."""
        assert self._spans is not None, "connectors read what encoders have written"
        cells = self._spans.item_cells
        if cells is None or self._queries is None:
            return self._of_slots(num_vectors)
        items = cells[:num_vectors].div(self._spans.longest_item, rounding_mode="floor")
        return self._of_slots(self._spans.num_items * self._queries)[items * self._queries]

    def _of_slots(self, num_slots: int) -> Tensor:
        assert self._spans is not None, "connectors read what encoders have written"
        slots = self._spans.slots[:num_slots]
        sequences = slots.div(self._slots, rounding_mode="floor")
        return self._of_sequences[sequences.clamp(max=len(self._of_sequences) - 1)]

    def of_rows(self, x: Tensor) -> Tensor:
        """[R] of each row; start rows come before the first vector of their span."""
        spans = cast(Any, self._spans)
        rows = spans.vectors[: spans.num_vectors]
        owners = x.new_full((x.shape[0],), -1, dtype=torch.long)
        owners[rows] = self._of_vectors(spans.num_vectors)
        starts = (spans.positions[: x.shape[0]] == 0).nonzero().squeeze(1)
        following = (starts + 1).clamp(max=x.shape[0] - 1)
        owners[starts] = owners[following]
        return owners
