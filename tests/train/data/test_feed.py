"""Global batches do not depend on ranks, microbatches or restarts, in content and order."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batch import Batch
from tests.corpora import write_corpus, write_documents
from train.data.collate import Collator
from train.data.corpus import Corpus
from train.data.document import Kind
from train.data.feed import Feed
from train.data.mixture import Mixture, SourceConfig, shares
from train.data.pack import Room
from train.data.plan import Position, StepPlan, identities
from train.data.sources import Laying, Source, Sources
from train.data.spans.at_random import RandomSpansConfig
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import TextReader
from train.errors import DataError

S = 64
STEPS = 7
ENTRIES = 8


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    root = tmp_path_factory.mktemp("corpora")
    write_documents(root / "long", mean_tokens=50, seed=1)
    write_documents(root / "short", mean_tokens=12, seed=2, with_spans=True)
    write_corpus(root / "cut", sequence_tokens=S, train=30, seed=3)
    return [Corpus(str(root / name)) for name in ("long", "short", "cut")]


def plan_of(
    corpora: list[Corpus],
    *,
    weights: list[float],
    window: int = 40,
    seed: int = 5,
    choices: int = 1,
    steps: int = STEPS,
    **laying: Any,
) -> StepPlan:
    at = Laying(sequence_tokens=S, window=window, seed=seed, **laying)
    names = [f"source{number}" for number in range(len(weights))]
    sources = [Source(n, i, corpora[i], at) for i, n in enumerate(names)]
    mixed = {n: SourceConfig(corpus="x", weight=w) for n, w in zip(names, weights, strict=True)}
    sequences = ENTRIES // choices
    mixture = Mixture(
        shares(mixed, {}, steps=steps, sequences=sequences), sequences=sequences, seed=seed
    )
    return StepPlan(Sources(sources), mixture, entries=ENTRIES, choices=choices)


def collator(seed: int = 5) -> Collator:
    return Collator(
        sequence_tokens=S,
        readers={
            "text": TextReader(
                kind=RandomSpansConfig(ratio=0.25),
                seed=seed,
                capacity=SpanCapacity(tokens=40, spans=12, longest_tokens=S),
            )
        },
        padding=3,
    )


def rows_of(batches: list[Batch]) -> list[tuple[torch.Tensor, ...]]:
    """What each sequence of a step is, whatever the microbatch it came in."""
    found: list[tuple[torch.Tensor, ...]] = []
    for batch in batches:
        for sequence in range(len(batch.tokens)):
            spans = batch.spans["text"]
            slots = spans.slots[: spans.num_vectors]
            mine = (slots >= sequence * S) & (slots < (sequence + 1) * S)
            found.append(
                (batch.tokens[sequence], batch.labels[sequence], slots[mine] - sequence * S)
            )
    return found


def read(
    plan: StepPlan, *, first: int, last: int, ranks: int, micro: int
) -> dict[int, list[tuple[torch.Tensor, ...]]]:
    """Steps first + 1, ..., last, all ranks' parts in rank order."""
    steps: dict[int, list[tuple[torch.Tensor, ...]]] = {}
    for rank in range(ranks):
        feed = Feed(
            plan,
            collator(),
            micro_sequences=micro,
            rank=rank,
            ranks=ranks,
            timeout_seconds=30,
            last_step=last,
        )
        with feed:
            for step in range(first + 1, last + 1):
                data = feed.step(step)
                assert data.first == len(steps.setdefault(step, []))
                steps[step] += rows_of(data.batches)
    return steps


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_ranks_and_resume_points_change_nothing(corpora: list[Corpus], data: st.DataObject) -> None:
    settings_of_run: dict[str, Any] = {
        "weights": data.draw(st.lists(st.floats(0.1, 1), min_size=1, max_size=3)),
        "window": data.draw(st.integers(5, 150)),
        "seed": data.draw(st.integers(0, 99)),
        "choices": data.draw(st.sampled_from([1, 2])),
        "pack": data.draw(st.sampled_from(["fit", "stream"])),
    }
    whole = read(plan_of(corpora, **settings_of_run), first=0, last=STEPS, ranks=1, micro=ENTRIES)
    stops = sorted(data.draw(st.sets(st.integers(1, STEPS - 1), max_size=3)))
    position: Position | None = None
    for first, last in zip([0, *stops], [*stops, STEPS], strict=True):
        # A new process: nothing is known but what a checkpoint keeps, or not even that.
        plan = plan_of(corpora, **settings_of_run)
        if position is not None and data.draw(st.booleans()):
            plan.start_at(position, step=first)
        ranks = data.draw(st.sampled_from([1, 2, 4]))
        micro = data.draw(st.sampled_from([1, 2]))
        part = read(plan, first=first, last=last, ranks=ranks, micro=micro)
        for step, sequences in part.items():
            assert len(sequences) == ENTRIES
            for mine, theirs in zip(sequences, whole[step], strict=True):
                assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), step
        position = plan.position(last)


def test_every_document_is_read_once_an_epoch(corpora: list[Corpus]) -> None:
    plan = plan_of(corpora, weights=[1.0], window=50, steps=60)
    sequences = plan.sources.all[0].sequences
    taken: dict[int, dict[int, list[tuple[int, int]]]] = {}
    number = first_of_epoch = epoch_before = 0
    while (sequence := sequences.sequence(number)).epoch < 3:
        if sequence.epoch != epoch_before:
            first_of_epoch, epoch_before = number, sequence.epoch
        assert sequence.number == number - first_of_epoch, "it seeds the sequence's spans"
        for document, begin, end in sequence.parts.tolist():
            taken.setdefault(sequence.epoch, {}).setdefault(document, []).append((begin, end))
        number += 1
    store = corpora[0].train
    lengths = np.concatenate([store.lengths(shard) for shard in range(len(store.shard_sizes))])
    assert list(taken) == [0, 1, 2]
    for epoch in taken.values():
        assert sorted(epoch) == list(range(len(store)))
        for document, ranges in epoch.items():
            covered = [t for begin, end in sorted(ranges) for t in range(begin, end)]
            assert covered == list(range(lengths[document, 0]))
    assert taken[0] != taken[1]


def test_a_row_holds_what_its_documents_hold(corpora: list[Corpus]) -> None:
    plan = plan_of(corpora, weights=[1.0, 1.0])
    for step in range(1, STEPS + 1):
        for entry in plan.step(step):
            sample = entry.source.read(entry.sequence)
            assert sample.tokens[0] == 0
            assert sample.documents is not None
            at = 1
            for (number, begin, end), (start, stop) in zip(
                entry.sequence.parts.tolist(), sample.documents.tolist(), strict=True
            ):
                stored = entry.source.corpus.train.columns(number)
                assert (start, stop) == (at, at + end - begin)
                assert sample.tokens[start:stop].tolist() == stored["tokens"][begin:end].tolist()
                at = stop
            assert at == len(sample.tokens) <= S + 1


def test_stored_spans_and_scores_move_with_their_documents(corpora: list[Corpus]) -> None:
    room = Room(kind=Kind.TEXT_SPAN, spans=6, slots=40)
    plan = plan_of(corpora, weights=[0.0, 1.0], rooms=(room,))
    seen = 0
    for entry in plan.step(1):
        sample = entry.source.read(entry.sequence)
        assert sample.spans is not None
        assert sample.documents is not None
        assert (sample.scored is None) == (len(sample.spans) == 0)
        for start, stop in sample.spans.tolist():
            assert sample.scored is not None
            owner = [(a, b) for a, b in sample.documents.tolist() if a <= start < b]
            assert owner
            assert start == owner[0][0]
            assert stop - start == (owner[0][1] - owner[0][0]) // 2
            assert not sample.scored[start:stop].any()
            assert sample.scored[stop : owner[0][1]].all()
            seen += 1
    assert seen > ENTRIES


def test_documents_apart_each_begin_with_their_own_start(corpora: list[Corpus]) -> None:
    plan = plan_of(corpora, weights=[1.0, 1.0], attend="within")
    for entry in plan.step(2):
        sample = entry.source.read(entry.sequence)
        assert sample.documents is not None
        assert sample.scored is not None
        assert len(sample.tokens) <= S + 1
        assert sample.documents[0, 0] == 0
        assert sample.documents[-1, 1] == len(sample.tokens)
        starts = sample.documents[:, 0]
        assert (sample.tokens[starts] == 0).all()
        assert not sample.scored[starts].any()


def test_layouts_hold_the_same_documents_with_other_spans(corpora: list[Corpus]) -> None:
    plan = plan_of(corpora, weights=[1.0], choices=2)
    with Feed(
        plan, collator(), micro_sequences=2, rank=0, ranks=1, timeout_seconds=30, last_step=1
    ) as feed:
        batches = feed.step(1).batches
    for batch in batches:
        assert torch.equal(batch.tokens[0], batch.tokens[1])
    different = [not torch.equal(batch.labels[0], batch.labels[1]) for batch in batches]
    assert sum(different) >= len(different) - 1
    assert not torch.equal(batches[0].tokens, batches[1].tokens)


def test_a_position_of_another_mixture_is_refused(corpora: list[Corpus]) -> None:
    position = plan_of(corpora, weights=[1.0, 1.0]).position(3)
    with pytest.raises(DataError, match=r"has read \[12, 12\] sequences .* says \[18, 6\]"):
        plan_of(corpora, weights=[3.0, 1.0]).start_at(position, step=3)


def test_what_was_read_is_listed(corpora: list[Corpus]) -> None:
    plan = plan_of(corpora, weights=[1.0, 1.0, 1.0])
    with Feed(
        plan, collator(), micro_sequences=2, rank=1, ranks=2, timeout_seconds=30, last_step=2
    ) as feed:
        data = feed.step(2)
    assert (data.first, data.entries) == (4, 4)
    np.testing.assert_array_equal(
        data.identities, identities(plan.step(2))[-len(data.identities) :]
    )
    assert set(data.identities[:, 0].tolist()) == {4, 5, 6, 7}


def test_damage_surfaces_in_the_step_that_needs_the_shard(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "corpus")
    plan = plan_of([Corpus(str(root))], weights=[1.0])
    for shard in (root / "train").glob("*.mds"):
        shard.write_bytes(shard.read_bytes()[:-1])
    with Feed(
        plan, collator(), micro_sequences=2, rank=0, ranks=1, timeout_seconds=30, last_step=2
    ) as feed:
        error = feed.try_step(1)
    assert isinstance(error, DataError)
    assert "bytes where the index says" in str(error)


def test_media_are_refused_until_an_encoder_reads_them(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "corpus", media=True)
    with pytest.raises(DataError, match="120 spans of image, and the model has no encoder of them"):
        plan_of([Corpus(str(root))], weights=[1.0])
    room = Room(kind=Kind.IMAGE, spans=4, slots=40, vectors=max)
    told = "120 spans of image, of which 120 have no recorded size, .* build the corpus again"
    with pytest.raises(DataError, match=told):
        plan_of([Corpus(str(root))], weights=[1.0], rooms=(room,))


def test_batches_have_one_shape(corpora: list[Corpus]) -> None:
    plan = plan_of(corpora, weights=[1.0, 1.0, 1.0])
    shapes: set[tuple[torch.Size, ...]] = set()
    with Feed(
        plan, collator(), micro_sequences=2, rank=0, ranks=1, timeout_seconds=30, last_step=STEPS
    ) as feed:
        for step in range(1, STEPS + 1):
            for batch in feed.step(step).batches:
                tensors = [getattr(batch, field.name) for field in fields(batch)]
                tensors += [
                    getattr(batch.spans["text"], f.name) for f in fields(batch.spans["text"])
                ]
                shapes.add(tuple(t.shape for t in tensors if isinstance(t, torch.Tensor)))
    assert len(shapes) == 1


def test_an_epoch_is_all_documents_however_badly_they_fit(tmp_path: Path) -> None:
    """Documents with spans are never cut: of these, no two share a sequence."""
    root = write_documents(tmp_path / "corpus", mean_tokens=1, with_spans=True, least_tokens=36)
    source = Source(
        "only",
        0,
        Corpus(str(root)),
        Laying(
            sequence_tokens=S,
            window=50,
            rooms=(Room(kind=Kind.TEXT_SPAN, spans=4, slots=40),),
        ),
    )
    sequences = source.sequences_for(epochs=1, tokens=None)
    assert sequences == 120
    tokens = int(source.corpus.train.totals[:, 0].sum())
    assert source.sequences_for(epochs=None, tokens=tokens // 2) == pytest.approx(60, abs=1)
    read = {
        int(n)
        for sequence in range(sequences)
        for n in source.sequences.sequence(sequence).parts[:, 0]
    }
    assert len(read) == 120


def read_first_step(plan: StepPlan) -> None:
    for entry in plan.step(1):
        entry.source.read(entry.sequence)


def test_lengths_that_are_too_long_are_noticed(tmp_path: Path, corpora: list[Corpus]) -> None:
    root = write_documents(tmp_path / "corpus", lie_about_tokens=3)
    plan = plan_of([Corpus(str(root))], weights=[1.0])
    with pytest.raises(DataError, match=r"has \d+ tokens where the recorded lengths say \d+"):
        read_first_step(plan)


def test_tokens_beyond_the_vocabulary_are_named(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "corpus")
    with pytest.raises(DataError, match="vocabulary has 300 entries and the model's 30"):
        plan_of([Corpus(str(root))], weights=[1.0], vocabulary=30)
    for manifest in root.glob("*/manifest.json"):
        manifest.write_text(manifest.read_text().replace('"vocabulary": 300', '"vocabulary": 30'))
    plan = plan_of([Corpus(str(root))], weights=[1.0], vocabulary=30)
    with pytest.raises(DataError, match=r"has token \d+, but the model knows 30"):
        read_first_step(plan)


def test_other_lengths_or_special_tokens_are_other_data(tmp_path: Path) -> None:
    prints = set()
    for name, lie in (("a", 0), ("b", 0), ("c", 1)):
        root = write_documents(tmp_path / name, lie_about_tokens=lie)
        prints.add(Corpus(str(root)).fingerprint)
    assert len(prints) == 2
    one, other = (tmp_path / "a" / split / "manifest.json" for split in ("train", "validation"))
    one.write_text(one.read_text().replace('"document": 2', '"document": 7'))
    with pytest.raises(DataError, match=r"of another corpus than that of train \(its special_tok"):
        Corpus(str(tmp_path / "a"))
    other.write_text(one.read_text())
    assert Corpus(str(tmp_path / "a")).fingerprint not in prints
    changed = Corpus(str(tmp_path / "a"))
    with pytest.raises(DataError, match=r"a has other ids of special tokens than .*b, of the same"):
        plan_of([Corpus(str(tmp_path / "b")), changed], weights=[1.0, 1.0])
    one.write_text(one.read_text().replace('"document": 7', '"document": 700'))
    with pytest.raises(DataError, match="the id 700, which is none of the vocabulary"):
        Corpus(str(tmp_path / "a"))


def test_a_process_ends_while_its_reader_is_stuck(tmp_path: Path) -> None:
    script = """
import time
from train.data.feed import _Reader
reader = _Reader()
reader.submit(time.sleep, 600)
time.sleep(0.2)
"""
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
