"""Which cells the parity table has."""

import functools
from collections.abc import Iterable
from itertools import product
from typing import Any

from tests.distributed.parity.pairs import Row, pairwise
from tests.distributed.semicausal_runs import Cell
from tests.distributed.tunings import TUNINGS

TRAINED_STEPS = 20
DAILY_STEPS = 3
"""The third is the first one whose moments and weights both come from clipped steps. Adapters begin
at zero, and graphs settle as shapes change: such cells take five, as in `make parity`."""

ZERO = (0, 1, 2, 3)
MICROBATCHES = (1, 2, 4)
SPANS = ("everywhere", "nowhere", "first rank")
RECOMPUTE = ("none", "full", "selective")

EIGHT_RANKS: Row = {"tensor": 2, "pipeline": 2, "data": 2}
INTERLEAVED: Row = {"pipeline": 2, "chunks": 2}

LAYOUTS: list[Row] = [
    {},
    {"data": 2},
    {"tensor": 2},
    {"tensor": 2, "sequence_parallel": True},
    {"pipeline": 2},
    {"pipeline": 4},
    {"tensor": 2, "data": 2},
    {"pipeline": 2, "data": 2},
    {"tensor": 2, "pipeline": 2},
]
"""Besides those of eight ranks, whose product is full, and the interleaved ones."""

FURTHER_LAYOUTS: list[Row] = [
    {"data": 2},
    {"tensor": 2},
    {"tensor": 2, "sequence_parallel": True},
    {"tensor": 2, "sequence_parallel": True, "data": 2},
    {"pipeline": 2},
    {"pipeline": 4},
    {"pipeline": 2, "data": 2},
    {"tensor": 2, "sequence_parallel": True, "pipeline": 2},
    INTERLEAVED,
    INTERLEAVED | {"tensor": 2},
    INTERLEAVED | {"data": 2},
    EIGHT_RANKS | {"sequence_parallel": True},
]
"""For tied and untied heads, frozen encoder layers and both kinds of norm."""


DAILY_WITHIN: list[Row] = [{}, {"tensor": 2, "sequence_parallel": True}, INTERLEAVED]
"""Layouts in which a mask meets all rows, some heads, and stages that compute again."""


COMPILED_LAYOUTS: list[Row] = [
    {},
    {"data": 2},
    {"tensor": 2},
    {"tensor": 2, "sequence_parallel": True},
    {"pipeline": 2},
    INTERLEAVED,
    {"tensor": 2, "sequence_parallel": True, "pipeline": 2},
]

DAILY_DECODERS: list[Row] = [
    {"tensor": 2, "sequence_parallel": True, "zero": 1, "recompute": "full", "decoder": "qwen2"},
    {"data": 2, "zero": 3, "attend": "within", "decoder": "qwen2"},
    INTERLEAVED | {"zero": 3, "spans": "first rank", "decoder": "qwen2"},
    {"pipeline": 2, "zero": 1, "tied": False, "decoder": "gpt2"},
    {"tensor": 2, "sequence_parallel": True, "zero": 3, "tuned": "all", "decoder": "qwen2"},
]
"""Heads that share keys, positions that turn them, gates and tables, split in every way."""

DAILY_IMAGES: list[Row] = [
    {"data": 2, "zero": 0},
    {"data": 2, "zero": 3, "spans": "first rank"},
    {"data": 2, "zero": 3, "spans": "nowhere", "frozen": True},
    {"data": 2, "zero": 1, "spans": "first rank", "frozen": True, "attend": "within"},
    {"tensor": 2, "zero": 1},
    {"tensor": 2, "sequence_parallel": True, "zero": 3, "frozen": True, "recompute": "full"},
    {"pipeline": 2, "zero": 0, "recompute": "full"},
    INTERLEAVED | {"zero": 3, "spans": "first rank"},
    {"tensor": 2, "sequence_parallel": True, "pipeline": 2, "zero": 1, "attend": "within"},
]
"""Pictures beside spans of text: on all ranks, on some, on none, with either encoder fixed."""

DAILY_ITEMS: list[Row] = [
    {"data": 2, "zero": 3, "spans": "first rank", "items": "all"},
    {"tensor": 2, "sequence_parallel": True, "zero": 1, "frozen": True, "items": "all"},
    INTERLEAVED | {"zero": 3, "recompute": "full", "items": "video"},
    {"pipeline": 2, "data": 2, "zero": 1, "items": "all", "dealt": True},
]
"""Pictures, sounds and videos beside each other, on all ranks or on some, dealt by what they cost;
videos alone."""

DAILY_RESAMPLED: list[Row] = [
    {"data": 2, "zero": 3, "spans": "first rank", "frozen": True},
    {"data": 2, "zero": 1, "spans": "first rank", "recompute": "selective", "items": "audio"},
    {"tensor": 2, "zero": 0},
    {"tensor": 2, "sequence_parallel": True, "zero": 3, "recompute": "full", "items": "video"},
    INTERLEAVED | {"zero": 1, "attend": "within"},
    {"tensor": 2, "sequence_parallel": True, "pipeline": 2, "zero": 1, "frozen": True},
]
"""Items of unlike sizes behind a query resampler, which is split, gathered and computed again."""

DAILY_FUSED: list[Row] = [
    {"data": 2, "zero": 3, "spans": "first rank"},
    {"tensor": 2, "sequence_parallel": True, "zero": 1, "recompute": "full"},
    INTERLEAVED | {"zero": 3, "frozen": True},
]
"""Pictures with text behind them as one span; on some ranks neither."""

DAILY_COMPILED: list[Row] = [
    {"tensor": 2, "zero": 1, "norm": "pre"},
    {"tensor": 2, "sequence_parallel": True, "zero": 3, "frozen": True, "recompute": "full"},
    {"data": 2, "zero": 3, "frozen": True, "spans": "first rank", "recompute": "selective"},
]
"""Blocks compiled whole and between their layers; parameters gathered around graphs, once where no
input of a block has a gradient."""


TUNED_LAYOUTS: list[Row] = [
    {"tensor": 2},
    {"tensor": 2, "sequence_parallel": True},
    {"pipeline": 2},
    INTERLEAVED,
    {"tensor": 2, "pipeline": 2},
]

DAILY_TUNED: list[Row] = [
    {"tuned": "all", "zero": 1},
    {"tuned": "all", "zero": 3, "tensor": 2, "sequence_parallel": True, "recompute": "full"},
    {"tuned": "beside the connector", "zero": 3, "tensor": 2},
    {"tuned": "encoder", "zero": 2, **INTERLEAVED},
    {"tuned": "last block", "zero": 3, **INTERLEAVED},
    {"tuned": "BitFit", "zero": 1, "tensor": 2},
    {"tuned": "bottleneck", "zero": 2, "tensor": 2, "sequence_parallel": True},
]
"""Each way to split a layer, a stage on which nothing trains, and a piece on which nothing does."""


@functools.cache
def planned_cells() -> tuple[Cell, ...]:
    """The table's cells, those of one mesh after each other, the fewest ranks first."""
    rows = [
        *_main_rows(),
        *_further_rows(),
        *_bf16_rows(),
        *_dropout_rows(),
        *_within_rows(({}, *FURTHER_LAYOUTS)),
        *_compiled_rows(),
        *_decoder_rows(),
        *_image_rows(),
        *_item_rows(),
        *_resampled_rows(),
        *_trained_rows(),
        *_tuned_rows(),
    ]
    return tuple(_ordered(rows))


def daily_cells() -> list[Cell]:
    """Cells for `make test`: every pair of choices, on at most four ranks."""
    choices: dict[str, Any] = {
        "layout": range(len(FURTHER_LAYOUTS) - 1),
        "zero": ZERO,
        "microbatches": (2, 4),
        "spans": ("everywhere", "first rank"),
        "recompute": ("none", "full"),
        "tied": (True, False),
        "frozen": (False, True),
    }
    rows = [FURTHER_LAYOUTS[row.pop("layout")] | row for row in pairwise(choices)]
    # ZeRO on whole layers, by number of microbatches and by where spans are.
    uneven: list[Row] = [
        {"microbatches": 1},
        {"microbatches": 2, "spans": "first rank"},
        {"microbatches": 4},
    ]
    rows += [{"data": 2, "zero": zero} | row for zero in ZERO for row in uneven]
    others: list[Row] = [{}, {"norm": "pre"}, {"spans": "nowhere"}]
    rows += [
        {"data": data, "zero": 3, "microbatches": 2} | row for data in (1, 2) for row in others
    ]
    rows += _within_rows(DAILY_WITHIN)
    rows += [row | {"microbatches": 2, "compiled": "eager"} for row in DAILY_COMPILED]
    rows += [row | {"microbatches": 2} for row in DAILY_TUNED]
    rows += [row | {"microbatches": 2, "norm": "pre"} for row in DAILY_DECODERS]
    rows += [row | {"microbatches": 2, "items": "image"} for row in DAILY_IMAGES]
    rows += [row | {"microbatches": 2} for row in DAILY_ITEMS]
    resampled: Row = {"microbatches": 2, "connector": "resampler"}
    rows += [{"items": "image"} | row | resampled for row in DAILY_RESAMPLED]
    rows += [row | {"microbatches": 2, "items": "fused"} for row in DAILY_FUSED]
    rows.append(
        resampled | {"items": "image", "tensor": 2, "zero": 3, "tuned": "beside the resampler"}
    )
    brief: Row = {"steps": DAILY_STEPS}
    return _ordered([row if {"tuned", "compiled"} & {*row} else row | brief for row in rows])


def _main_rows() -> list[Row]:
    choices: dict[str, Any] = {
        "zero": ZERO, "microbatches": MICROBATCHES, "spans": SPANS, "recompute": RECOMPUTE
    }  # fmt: skip
    rows = [layout | row for layout in LAYOUTS for row in pairwise(choices)]
    # Interleaving wants a multiple of the stages; with one microbatch it is refused.
    rows += [INTERLEAVED | row for row in pairwise(choices | {"microbatches": MICROBATCHES[1:]})]
    rows += [INTERLEAVED | {"zero": zero, "microbatches": 1} for zero in ZERO]
    rows += [
        EIGHT_RANKS | dict(zip(choices, chosen, strict=True))
        for chosen in product(ZERO, MICROBATCHES, SPANS, RECOMPUTE[:2])
    ]
    del choices["recompute"]
    rows += [EIGHT_RANKS | row | {"recompute": "selective"} for row in pairwise(choices)]
    return rows


def _further_rows() -> list[Row]:
    choices: dict[str, Any] = {
        "zero": ZERO,
        "tied": (True, False),
        "frozen": (True, False),
        "norm": ("pre", "deepnorm"),
        "microbatches": (2, 4),
        "spans": ("everywhere", "first rank"),
        "recompute": ("none", "full"),
    }
    return [layout | row for layout in FURTHER_LAYOUTS for row in pairwise(choices)]


def _bf16_rows() -> list[Row]:
    choices: dict[str, Any] = {"zero": ZERO, "microbatches": (2, 4), "tied": (True, False)}
    return [
        layout | row | {"precision": "bf16"}
        for layout in ({}, *FURTHER_LAYOUTS)
        for row in pairwise(choices)
    ]


def _dropout_rows() -> list[Row]:
    return [
        layout | {"zero": zero, "microbatches": 2, "recompute": recompute, "dropout": 0.1}
        for layout in FURTHER_LAYOUTS
        for zero, recompute in ((1, "none"), (3, "full"))
    ]


def _within_rows(layouts: Iterable[Row]) -> list[Row]:
    return [
        layout
        | {"zero": zero, "microbatches": 2, "recompute": recompute, "spans": spans}
        | {"attend": "within"}
        for layout in layouts
        for zero, recompute, spans in ((1, "full", "everywhere"), (3, "selective", "first rank"))
    ]


def _compiled_rows() -> list[Row]:
    choices: dict[str, Any] = {
        "zero": (0, 1, 3),
        "recompute": RECOMPUTE,
        "norm": ("deepnorm", "pre"),
        "frozen": (False, True),
    }
    return [
        layout | row | {"microbatches": 2, "compiled": "aot_eager"}
        for layout in COMPILED_LAYOUTS
        for row in pairwise(choices)
    ]


def _decoder_rows() -> list[Row]:
    choices: dict[str, Any] = {
        "decoder": ("gpt2", "qwen2"),
        "zero": (1, 3),
        "tied": (True, False),
        "recompute": ("none", "full"),
        "attend": ("across", "within"),
    }
    rows = [layout | row for layout in ({}, *FURTHER_LAYOUTS) for row in pairwise(choices)]
    rows += [
        layout | {"compiled": "aot_eager", "decoder": decoder}
        for layout in COMPILED_LAYOUTS
        for decoder in ("gpt2", "qwen2")
    ]
    return [row | {"microbatches": 2, "norm": "pre"} for row in rows]


def _image_rows() -> list[Row]:
    choices: dict[str, Any] = {
        "zero": ZERO,
        "spans": SPANS,
        "microbatches": (2, 4),
        "frozen": (False, True),
        "recompute": RECOMPUTE,
        "attend": ("across", "within"),
    }
    of_each = pairwise(choices)
    rows = [layout | row for layout in ({}, *FURTHER_LAYOUTS) for row in of_each]
    others: list[Row] = [{"precision": "bf16"}, {"compiled": "aot_eager"}, {"dropout": 0.1}]
    rows += [
        layout | other | {"zero": zero, "microbatches": 2, "spans": spans}
        for layout in COMPILED_LAYOUTS
        for other in others
        for zero, spans in ((1, "everywhere"), (3, "first rank"))
    ]
    rows.append(EIGHT_RANKS | {"zero": 3, "microbatches": 2, "steps": TRAINED_STEPS})
    return [row | {"items": "image"} for row in rows]


def _item_rows() -> list[Row]:
    choices: dict[str, Any] = {
        "items": ("all", "audio", "video", "divided", "fused"),
        "zero": (0, 1, 3),
        "spans": SPANS,
        "microbatches": (2, 4),
        "frozen": (False, True),
        "recompute": RECOMPUTE,
        "attend": ("across", "within"),
    }
    of_each = pairwise(choices)
    rows = [layout | row for layout in ({}, *FURTHER_LAYOUTS) for row in of_each]
    others: list[Row] = [{"precision": "bf16"}, {"compiled": "aot_eager"}, {"dropout": 0.1}]
    dealt: Row = {"microbatches": 4, "spans": "first rank", "items": "all", "dealt": True}
    rows += [
        layout | other | {"zero": 3, "microbatches": 2, "spans": "first rank", "items": "all"}
        for layout in COMPILED_LAYOUTS
        for other in others
    ]
    rows += [layout | dealt | {"zero": zero} for layout in FURTHER_LAYOUTS for zero in (0, 1, 3)]
    rows += [
        layout | other | {"zero": 1, "microbatches": 2, "spans": "first rank", "items": "fused"}
        for layout in COMPILED_LAYOUTS
        for other in others
    ]
    rows.append(
        EIGHT_RANKS | {"zero": 3, "microbatches": 2, "steps": TRAINED_STEPS, "items": "all"}
    )
    return rows


def _resampled_rows() -> list[Row]:
    choices: dict[str, Any] = {
        "items": ("image", "all"),
        "zero": (0, 1, 3),
        "spans": SPANS,
        "microbatches": (2, 4),
        "frozen": (False, True),
        "recompute": RECOMPUTE,
    }
    of_each = pairwise(choices)
    rows = [layout | row for layout in ({}, *FURTHER_LAYOUTS) for row in of_each]
    others: list[Row] = [{"precision": "bf16"}, {"compiled": "aot_eager"}, {"dropout": 0.1}]
    rows += [
        layout | other | {"zero": 3, "microbatches": 2, "spans": "first rank", "items": "image"}
        for layout in COMPILED_LAYOUTS
        for other in others
    ]
    rows += [
        layout | {"zero": zero, "tuned": tuned, "microbatches": 2, "items": "image"}
        for layout in TUNED_LAYOUTS
        for zero in (1, 3)
        for tuned in ("connector", "beside the resampler")
    ]
    return [row | {"connector": "resampler"} for row in rows]


def _trained_rows() -> list[Row]:
    return [
        layout | {"zero": 3, "microbatches": 2, "steps": TRAINED_STEPS}
        for layout in ({"tensor": 2, "pipeline": 2}, EIGHT_RANKS)
    ]


def _tuned_rows() -> list[Row]:
    asked = [
        layout | {"zero": zero, "tuned": tuned, "microbatches": 2}
        for layout in TUNED_LAYOUTS
        for zero in (1, 3)
        for tuned in ("decoder", "encoder", "connector", "all")
    ]
    layouts = [{}, {"data": 2}, *TUNED_LAYOUTS, INTERLEAVED | {"data": 2}, EIGHT_RANKS]
    choices: dict[str, Any] = {
        "layout": range(len(layouts)),
        "tuned": [name for name in TUNINGS if name],
        "zero": ZERO,
        "tied": (True, False),
        "norm": ("deepnorm", "pre"),
        "microbatches": (2, 4),
        "spans": ("everywhere", "first rank"),
        "recompute": RECOMPUTE,
        "attend": ("across", "within"),
    }
    further = [layouts[row.pop("layout")] | row for row in pairwise(choices)]
    in_bf16 = [
        layout | {"zero": zero, "tuned": tuned, "microbatches": 2, "precision": "bf16"}
        for layout in ({}, {"data": 2}, *TUNED_LAYOUTS)
        for zero, tuned in ((1, "all"), (3, "all"), (1, "decoder"), (3, "encoder"))
    ]
    apart = [
        layout | {"zero": 3, "tuned": "all", "microbatches": 2, "attend": "within"}
        for layout in ({}, {"data": 2}, *TUNED_LAYOUTS)
    ]
    return [*asked, *further, *in_bf16, *apart]


def _ordered(rows: list[Row]) -> list[Cell]:
    cells = dict.fromkeys(Cell(**row) for row in rows)
    return sorted(cells, key=lambda cell: (cell.ranks, cell.data, cell.tensor, cell.layout))
