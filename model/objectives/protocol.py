"""What every objective of an encoder alone is."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

from model.batch import PackedSpans
from model.config import Config
from model.encoders.protocol import EncoderKind
from model.layers import Layers
from model.loss import Loss
from model.recompute import Recompute


class Judge(Protocol):
    """A module that reads with an encoder, and tells the loss of what it makes of it."""

    def __call__(self, encoder: Any, spans: PackedSpans) -> Loss:
        """The loss, summed over the scored slots; a term for each, in their order.

        Args:
            encoder: which trains.
            spans: as the objective's `train.data.masks` leaves them.
        """
        ...


class ObjectiveKind(Config):
    """The configuration of an objective."""

    kind: Any
    """Its name, which no other has."""
    encoder: str | None = None
    """Modality of the encoder that trains. Default: the only one that `model.encoders` has."""
    reads: ClassVar[tuple[type[EncoderKind], ...]]
    """Encoders that it is for."""

    @abstractmethod
    def build(
        self, encoder: Any, config: Any, *, vocabulary: int, layers: Layers, recompute: Recompute
    ) -> Any:
        """A `Judge`, a module without first values.

        Args:
            encoder: which trains; what is shared with it is taken from it.
            config: of that encoder.
            vocabulary: tokens that there are.
            layers: where weights come from.
            recompute: activations that are computed again in the backward.
        """

    def faults(self, path: str, encoder: EncoderKind) -> Iterator[str]:
        """What is wrong with it for an encoder, each with its key; `path` is that of this one."""
        if not isinstance(encoder, self.reads):
            yield (
                f"{path}.kind: {self.kind}, and the encoder is of kind {encoder.kind}: choose an "
                f"objective for it, or name another in {path}.encoder"
            )
