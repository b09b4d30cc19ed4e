"""What training a part of a model spares: which layers keep what for the backward."""

import re
from dataclasses import dataclass
from functools import cached_property

from model.adapters.tuning import SPLIT_OUTPUTS, Names, Tuning
from model.semicausal import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Keeps:
    """What a block keeps of what it might.

    Attributes:
        norms: outputs of norms, which are inputs of `qkv` and `up`.
        hidden: whether GELU's output is kept, the input of `down`.
        channels: of each row, in narrow layers of adapters, and of what these read besides.
    """

    norms: float = 2.0
    hidden: float = 1.0
    channels: float = 0.0


ALL = Keeps()


@dataclass(frozen=True)
class Reach:
    """How far gradients go, and what is kept on their way.

    Attributes:
        model: the whole one.
        tuning: what of it trains.
    """

    model: ModelConfig
    tuning: Tuning

    @cached_property
    def _names(self) -> Names:
        return Names.of(self.model)

    @cached_property
    def _trained(self) -> set[str]:
        return self.tuning.trained(self._names)

    @cached_property
    def _low_rank(self) -> set[str]:
        return self.tuning.low_rank(self._names)

    @cached_property
    def _narrowed(self) -> set[str]:
        return self.tuning.narrowed(self._names)

    def touches(self, prefix: str) -> bool:
        """Whether anything whose name begins so trains."""
        everything = self._trained | self._low_rank | self._narrowed
        return any(name.startswith(prefix) for name in everything)

    def first_block(self, prefix: str, num_blocks: int) -> int:
        """First of a list of blocks in which anything trains; one past the last if none does."""
        numbers = [
            int(found[1])
            for name in self._trained | self._low_rank | self._narrowed
            if (found := re.match(rf"{re.escape(prefix)}(\d+)\.", name))
        ]
        return min(numbers, default=num_blocks)

    @cached_property
    def first_decoder_layer(self) -> int:
        """From which on activations have gradients."""
        if any(map(self.touches, ("encoders.", "connectors.", "decoder.embedding"))):
            return 0
        return self.first_block("decoder.blocks.", self.model.decoder.num_layers)

    def first_layer_of(self, piece: tuple[int, int]) -> int:
        """The same within a run of layers; what one stage sends to the next always has a gradient.

        Args:
            piece: its first layer, and one past its last.
        """
        start, end = piece
        return min(max(start, self.first_decoder_layer), end) if start == 0 else start

    def last_decoder_layer(self, piece: tuple[int, int]) -> int | None:
        """In a run of layers the last one in which anything trains, where a backward comes first.

        Args:
            piece: its first layer, and one past its last.
        """
        layers = reversed(range(*piece))
        return next((n for n in layers if self.touches(f"decoder.blocks.{n}.")), None)

    def first_encoder_block(self, modality: str, num_blocks: int) -> int | None:
        """From which on an encoder's activations have gradients; None for none of it."""
        prefix = f"encoders.{modality}."
        # A block's own bias is read where the block is.
        lists = [f"{prefix}{name}." for name in ("blocks", "patch_biases")]
        behind = f"{prefix}final_norm."
        everything = self._trained | self._low_rank | self._narrowed
        if any(
            name.startswith(prefix) and not name.startswith((*lists, behind)) for name in everything
        ):
            return 0
        first = min(self.first_block(name, num_blocks) for name in lists)
        return None if first == num_blocks and not self.touches(behind) else first

    def trains_bias(self, modality: str) -> bool:
        """Whether a bias of an encoder's scores trains."""
        return any(
            name.startswith(f"encoders.{modality}.") and name.endswith("relative_bias.weight")
            for name in self._trained
        )

    def trains(self, name: str) -> bool:
        """Whether a parameter of the plain model does."""
        return name in self._trained

    def beside(self, prefix: str, *, tensor: int) -> list[tuple[float, float]]:
        """Widths of the products that adapters add to layers whose names begin so, on a rank.

        Args:
            prefix: of the layers.
            tensor: ranks that share each.
        """
        found: list[tuple[float, float]] = []
        for layer, (read, written) in self._names.linear.items():
            if not layer.startswith(prefix):
                continue
            is_column = layer.rsplit(".", 1)[-1] in SPLIT_OUTPUTS
            if layer in self._low_rank and self.tuning.lora is not None:
                rank = self.tuning.lora.rank
                found.append((read if is_column else read / tensor, rank))
                found.append((rank, written / tensor if is_column else written))
            if layer in self._narrowed and self.tuning.bottleneck is not None:
                width = self.tuning.bottleneck.width
                found += [(written, width), (width, written)]
        return found

    def keeps(self, block: str, *, dropout: bool = False, whatever_trains: bool = False) -> Keeps:
        """What a block keeps.

        Args:
            block: its name.
            dropout: whether adapters drop a part of what they read, which makes a copy.
            whatever_trains: whether a layer keeps what it reads even if its weight is fixed.
        """

        def reads(layer: str) -> bool:
            trains = layer in self._low_rank or f"{layer}.weight" in self._trained
            return trains or whatever_trains

        channels = 0.0
        for layer, (read, written) in self._names.linear.items():
            if not layer.startswith(f"{block}."):
                continue
            if layer in self._low_rank and self.tuning.lora is not None:
                channels += self.tuning.lora.rank + 2 * dropout * read
            if layer in self._narrowed and self.tuning.bottleneck is not None:
                channels += written + 2 * self.tuning.bottleneck.width
        up, gate = (f"{block}.feed_forward.{name}" for name in ("up", "gate"))
        norms = reads(f"{block}.attention.qkv") + (reads(up) or reads(gate))
        return Keeps(
            norms=norms, hidden=float(reads(f"{block}.feed_forward.down")), channels=channels
        )
