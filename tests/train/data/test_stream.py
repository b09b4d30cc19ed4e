"""The stream of documents, cut: against a whole array, and against how sequences were stored."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming import MDSWriter

from tests.corpora import write_corpus, write_documents
from train.data.corpus import Corpus
from train.data.order import GlobalOrder
from train.data.sources import Laying, Source, stream_runs
from train.data.store.manifest import Manifest, RecipeRecord
from train.errors import DataError

S = 48


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("stream") / "corpus"
    write_documents(root, train=150, validation=40, mean_tokens=40, shard_bytes=1500)
    return Corpus(str(root))


def stream_of(corpus: Corpus, split: str) -> np.ndarray:
    store = getattr(corpus, split)
    return np.concatenate([store.columns(number)["tokens"] for number in range(len(store))])


def source_of(corpus: Corpus, sequence_tokens: int = S, seed: int = 3) -> Source:
    laying = Laying(sequence_tokens=sequence_tokens, pack="stream", seed=seed, window=20)
    return Source("only", 0, corpus, laying)


@settings(deadline=None, max_examples=40)
@given(sequence_tokens=st.integers(1, 700), numbers=st.lists(st.integers(0, 2000), max_size=30))
def test_sequences_are_cut_from_one_stream(
    corpus: Corpus, sequence_tokens: int, numbers: list[int]
) -> None:
    stream = stream_of(corpus, "train")
    source = source_of(corpus, sequence_tokens)
    an_epoch = len(stream) // sequence_tokens
    assert source.sequences_for(epochs=1, tokens=None) == an_epoch
    for number in numbers:
        planned = source.sequences.sequence(number)
        assert planned.epoch == number // an_epoch
        sample = source.read(planned)
        begin = planned.number * sequence_tokens
        wanted = [0, *stream[begin : begin + sequence_tokens].tolist()]
        assert sample.tokens.tolist() == wanted
        assert sample.id == planned.number
        assert sample.scored is None, "all are"


def test_an_epoch_is_the_whole_stream(corpus: Corpus) -> None:
    source = source_of(corpus)
    count = len(stream_of(corpus, "train")) // S
    seen = [source.sequences.sequence(number).number for number in range(2 * count)]
    assert sorted(seen[:count]) == sorted(seen[count:]) == list(range(count))
    assert seen[:count] != seen[count:]
    assert seen != sorted(seen)


def test_validation_is_the_stream_from_its_beginning(corpus: Corpus) -> None:
    validation = source_of(corpus).validation
    stream = stream_of(corpus, "validation")
    assert len(validation) == len(stream) // S
    assert validation.up_to(2) == 2
    cut = np.concatenate([validation[number].tokens[1:] for number in range(len(validation))])
    np.testing.assert_array_equal(cut, stream[: len(cut)])


@pytest.mark.parametrize("sequence_tokens", [256, 512, 2048])
@pytest.mark.parametrize("vocabulary", [8_192, 100_000])
def test_runs_are_as_long_as_shards_of_sequences_were(
    tmp_path: Path, sequence_tokens: int, vocabulary: int
) -> None:
    dtype = np.dtype(np.uint16 if vocabulary < 1 << 16 else np.uint32)
    shard_bytes = 1 << 22
    sequence = np.zeros(sequence_tokens + 1, dtype)
    count = 5 * shard_bytes // (4 * sequence.nbytes)
    with MDSWriter(
        out=str(tmp_path),
        columns={"tokens": f"ndarray:{dtype.name}"},
        hashes=["sha1", "xxh64"],
        size_limit=shard_bytes,
    ) as writer:
        for _ in range(count):
            writer.write({"tokens": sequence})
        writer.flush_shard()
        stored = [shard["samples"] for shard in writer.shards]
        writer._reset_cache()
    store: Any = SimpleNamespace(
        totals=np.array([[count * sequence_tokens]]),
        manifest=Manifest(vocabulary=vocabulary, recipe=RecipeRecord(shard_bytes=shard_bytes)),
    )
    assert stream_runs(store, sequence_tokens=sequence_tokens) == stored


def test_the_order_is_that_of_stored_sequences(tmp_path: Path) -> None:
    """Frozen: 96 sequences in shards of 57 and 39, as earlier versions stored them."""
    corpus = Corpus(str(write_corpus(tmp_path / "corpus")))
    source = source_of(corpus, 64)
    order = GlobalOrder([57, 39], seed=3, window=20)
    planned = [source.sequences.sequence(number) for number in range(200)]
    assert [(each.epoch, each.number) for each in planned] == order.range(0, 200)


def test_too_little_text_is_refused(corpus: Corpus) -> None:
    with pytest.raises(DataError, match="too little text for one sequence of 1000000 tokens"):
        source_of(corpus, 1_000_000)


def test_too_little_text_for_validation_is_refused_before_a_run_begins(corpus: Corpus) -> None:
    with pytest.raises(DataError, match="validation holds too little text for one seq"):
        source_of(corpus, 4_000)


def test_a_corpus_of_sequences_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "corpus")
    for split in ("train", "validation"):
        manifest = root / split / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"documents"', '"pretraining"'))
    with pytest.raises(DataError, match=r"earlier versions built them.*tools\.corpus build"):
        Corpus(str(root))


@pytest.mark.parametrize(
    "counts",
    [
        np.ones(64)[:0],
        np.ones((300, 1), dtype=np.int64),
        np.ones(299, dtype=np.int64),
        np.ones(300),
        np.full(300, -1),
        b"",
        b"PK",
    ],
)
def test_counts_of_another_vocabulary_or_none(tmp_path: Path, counts: Any) -> None:
    corpus = Corpus(str(write_corpus(tmp_path / "corpus")))
    file = Path(corpus.root, "train/token_counts.npy")
    told = rf"{file} .*build the corpus again"
    if isinstance(counts, bytes):
        file.write_bytes(counts)
    else:
        np.save(file, counts)
        told = rf"{file} does not hold .* each of the 300 tokens .*: remove it, or build the corpus"
    with pytest.raises(DataError, match=told):
        corpus.token_counts()
    np.save(file, np.arange(300))
    assert corpus.token_counts().tolist() == list(range(300))
