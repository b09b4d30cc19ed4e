"""Items of a table, each as the mean of the vectors that an encoder makes of it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from model.batch import PackedSpans
from model.encoders.protocol import EncoderKind
from model.encoders.text import TextEncoderConfig
from model.layers import Layers, initialize
from train.checkpoint.directory import resolve
from train.checkpoint.restore import load_weights, read_state
from train.config import RunConfig
from train.data.payload import payload
from train.data.spans.media import MediaReader
from train.data.spans.places import FlatSpans, Ints
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import pack_text
from train.data.tokens import TOKENIZER_BYTES_AT_MOST, SpecialTokens, read_tokenizer
from train.errors import CheckpointError, ConfigError, DataError
from train.run_directory import kept_tokenizer
from train.storage.place import Place
from train.tasks.records import Record

_VECTORS_AT_ONCE: Final = 4096
Known = Any
"""What an item is read as: token numbers, or what its modality makes of a file."""


class Probed:
    """An encoder of a run, read from its checkpoint.

    Args:
        path: the run, or one of its checkpoints.
        config: of the run.
        modality: of the encoder; None: the only one.

    Raises:
        ConfigError: there is no such encoder, or several.
        CheckpointError: the tokenizer of the run is not there.
    """

    def __init__(self, path: Place, config: RunConfig, *, modality: str | None = None):
        self.path, self.config = resolve(path), config
        encoders = config.built_model.encoders
        if modality is None and len(encoders) == 1:
            modality = next(iter(encoders))
        if modality not in encoders:
            raise ConfigError(
                f"--modality: {modality or 'missing'}: name one of {', '.join(encoders)}, which "
                f"{path} has"
            )
        self.modality = modality
        self.encoder: EncoderKind = encoders[modality].encoder
        self._tokenizer: Any = None
        self._reader: MediaReader[Any, Any] | None = None
        if isinstance(self.encoder, TextEncoderConfig):
            kept = kept_tokenizer(self.path, read_state(self.path).model_dump())
            if kept is None:
                raise CheckpointError(f"{path} has no tokenizer: name a run's own directory")
            content = kept.read(limit_bytes=TOKENIZER_BYTES_AT_MOST)
            self._tokenizer = read_tokenizer(content, name=str(kept))
        else:
            reader = config.spans[modality].reader(
                self.encoder, capacity=self._room(1, 1), seed=0, special=SpecialTokens()
            )
            assert isinstance(reader, MediaReader), "what reads items"
            self._reader = reader

    def as_drawn(self) -> nn.Module:
        """With the values that a run of this seed begins from."""
        holder = nn.Module()
        holder.encoders = nn.ModuleDict({self.modality: self._built()})
        initialize(holder, seed=self.config.seed)
        return holder.encoders[self.modality]

    def as_trained(self) -> nn.Module:
        """With those of the checkpoint.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        encoder = self._built()
        load_weights(self.path, encoder, prefix=f"encoders.{self.modality}.")
        return encoder

    def _built(self) -> nn.Module:
        return self.encoder.build(
            vocabulary=self.config.model.decoder.vocabulary, layers=Layers(), recompute="none"
        ).eval()

    def read(self, record: Record, column: str) -> Known:
        """An item of a record.

        Raises:
            DataError: there is none, or it cannot be read.
        """
        value = record.values.get(column)
        if self._tokenizer is not None:
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{record.place}: {column} is no text: name the column of one")
            tokens = self._tokenizer.encode(value, add_special_tokens=False).ids
            return np.array(tokens[: self.encoder.longest_span], dtype=np.int64)
        assert self._reader is not None
        try:
            content = payload(value, fetch=lambda name: (record.directory / name).read_bytes())
            return self._reader.read_file(content, self.encoder)
        except (ValueError, OSError) as error:
            raise DataError(f"{record.place}: {column} {error}") from error

    def means(self, encoder: nn.Module, items: Sequence[Known]) -> torch.Tensor:
        """[n, E] the mean of each item's vectors."""
        found: list[torch.Tensor] = []
        with torch.no_grad():
            for some in self._dealt(items):
                lengths = np.array([self._vectors(item) for item in some])
                vectors = encoder(self._packed(some, lengths))[: lengths.sum()]
                found += [each.mean(dim=0) for each in vectors.split(lengths.tolist())]
        return torch.stack(found)

    def _dealt(self, items: Sequence[Known]) -> Iterator[Sequence[Known]]:
        """Items in batches of few vectors."""
        begin, count = 0, 0
        for number, item in enumerate(items):
            more = self._vectors(item)
            if number > begin and count + more > _VECTORS_AT_ONCE:
                yield items[begin:number]
                begin, count = number, 0
            count += more
        yield items[begin:]

    def _vectors(self, item: Known) -> int:
        if self._reader is None:
            return len(item)
        return self._reader.vectors_of(item, self.encoder)

    def _packed(self, items: Sequence[Known], lengths: Ints) -> PackedSpans:
        total = int(lengths.sum())
        starts = lengths.cumsum() - lengths
        spans = FlatSpans(np.zeros(len(items), dtype=np.int64), starts, lengths)
        room = self._room(total, len(items))
        if self._reader is None:
            assert isinstance(self.encoder, TextEncoderConfig)
            tokens = np.concatenate(items)[None]
            return pack_text(tokens, spans, capacity=room, start_token=self.encoder.start_token)
        return self._reader.pack_items(
            items,
            spans,
            encoder=self.encoder,
            capacity=room,
            sequences=1,
            sequence_tokens=total,
        )

    def _room(self, tokens: int, spans: int) -> SpanCapacity:
        longest = self.encoder.longest_span
        return SpanCapacity(tokens=tokens, spans=spans, longest_tokens=longest)


def labels_of(records: Sequence[Record], column: str) -> list[str]:
    """What each record is, as text.

    Raises:
        DataError: one says nothing.
    """
    found: list[str] = []
    for record in records:
        value: Any = record.values.get(column)
        if value is None or isinstance(value, Mapping | list | bytes):
            raise DataError(f"{record.place}: {column} is no label: name the column of one")
        found.append(str(value))
    return found
