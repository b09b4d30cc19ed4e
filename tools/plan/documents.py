"""How long the documents of a run's corpora are, where they are at hand and kept apart."""

from typing import Final

import numpy as np
import numpy.typing as npt

from train.build import build_mixture, open_sources
from train.config import RunConfig
from train.data.sequences import FittedSequences
from train.data.sources import Source
from train.errors import DataError
from train.storage.place import Place

MOST_SHARDS: Final = 64
"""Of a corpus whose lengths are looked at, evenly spread."""


def document_tokens(config: RunConfig) -> float | None:
    """Slots of the document that a slot lies in, on average, as `parallel.costs.causal_stack` asks.

    None where documents see each other, or a corpus is not on this host.

    Raises:
        UserError: a corpus is there and cannot be read, or they do not make up the run.
    """
    places = [Place.parse(source.corpus, config.storage) for source in config.data.mixed.values()]
    if config.data.attend != "within" or any(p.is_remote or not p.exists() for p in places):
        return None
    sources = open_sources(config)
    shares = build_mixture(config, sources).mean
    slots = config.data.sequence_tokens
    reaches = [_reach(_lengths(source), slots) for source in sources.all]
    return float(np.average(reaches, weights=shares))


def _lengths(source: Source) -> npt.NDArray[np.int64]:
    store, sequences = source.corpus.train, source.sequences
    assert isinstance(sequences, FittedSequences), "documents are kept apart"
    num_shards = len(store.shard_sizes)
    chosen = np.unique(np.linspace(0, num_shards - 1, MOST_SHARDS).round().astype(int))
    lengths = np.concatenate([sequences.lengths(int(shard))[:, 0] for shard in chosen])
    if not lengths.sum():
        raise DataError(f"{store.root} holds no token: build the corpus again")
    return lengths


def _reach(lengths: npt.NDArray[np.int64], slots: int) -> float:
    """Of documents that are cut every so many slots, and begin with a token of their own."""
    whole, rest = np.divmod(lengths + 1, slots)
    return float((whole * slots**2 + rest**2).sum() / (lengths + 1).sum())
