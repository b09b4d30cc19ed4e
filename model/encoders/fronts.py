"""What stands before the blocks of an audio encoder: from sound to one row every few samples.

Sounds lie one behind the other in *blocks*, each as many samples as one row is made of, and each
sound begins with a block of its own. So strides of convolutions meet the beginning of every sound,
and what a convolution computes over all of them at once is what it computes over one.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from model.config import Config
from model.layers import Initializer, Layers, constant, normal

HOP_SAMPLES = 160
"""From one frame of a log-mel spectrogram to the next: 10 ms at 16 kHz."""
WINDOW_SAMPLES = 400
"""Of which a frame is made."""
_KERNEL, _STRIDE = 3, 2
"""Of Whisper's convolutions, and of the second."""

Few = Annotated[int, Field(ge=1, le=2**12)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """Sounds in blocks, as a front reads them.

    Attributes:
        values: [K, D].
        valid: [K] of each block how many of its frames are a sound's: of two mel frames, or of what
            the first convolution gives. 0 between sounds.
        owners: [K] number of the sound.
        num_sounds: N.
    """

    values: Float[Tensor, "K D"]
    valid: Int64[Tensor, "K"]
    owners: Int64[Tensor, "K"]
    num_sounds: int


class Front(Protocol):
    """A module that makes rows of blocks."""

    def __call__(self, blocks: Blocks) -> Float[Tensor, "K E"]:
        """One row a block; those that no sound has mean nothing."""
        ...


class FrontKind(Config):
    """The configuration of a front."""

    kind: Any
    """Its name."""

    @property
    @abstractmethod
    def block_samples(self) -> int:
        """From one row to the next."""

    @property
    @abstractmethod
    def block_frames(self) -> int:
        """Frames of a block, of which `Blocks.valid` tells how many are real."""

    @property
    @abstractmethod
    def block_width(self) -> int:
        """D, numbers of a block."""

    @property
    @abstractmethod
    def more_blocks(self) -> int:
        """Most blocks of a sound beyond its rows."""

    @abstractmethod
    def num_rows(self, samples: int) -> int:
        """Rows of a sound, one at least."""

    @abstractmethod
    def fewest_samples(self, rows: int) -> int:
        """Of a sound of so many rows."""

    @abstractmethod
    def num_frames(self, samples: int) -> int:
        """Frames of a sound, one at least."""

    @abstractmethod
    def num_blocks(self, samples: int) -> int:
        """Blocks of a sound."""

    @abstractmethod
    def build(self, width: int, layers: Layers) -> nn.Module:
        """A `Front` for blocks of this width, without first values."""


class LogMelConfig(FrontKind):
    """A log-mel spectrogram, and two convolutions over its frames, the second halving them.

    Source: Whisper (2212.04356) §2.2.
    """

    kind: Literal["log_mel"] = "log_mel"
    mels: Annotated[int, Field(ge=1, le=256)] = 80
    """Bands of the spectrogram; 128 in Whisper's large-v3."""

    @property
    def block_samples(self) -> int:
        """Two frames."""
        return _STRIDE * HOP_SAMPLES

    @property
    def block_frames(self) -> int:
        """Two."""
        return _STRIDE

    @property
    def block_width(self) -> int:
        """Of two frames."""
        return _STRIDE * self.mels

    @property
    def more_blocks(self) -> int:
        """An empty one behind each sound, as convolutions read one frame beyond it."""
        return 1

    def num_frames(self, samples: int) -> int:
        """One every hop that has begun."""
        return max(1, -(-samples // HOP_SAMPLES))

    def fewest_samples(self, rows: int) -> int:
        """One in the last frame that is needed."""
        return (rows - 1) * self.block_samples + 1

    def num_rows(self, samples: int) -> int:
        """One every two frames."""
        return -(-self.num_frames(samples) // _STRIDE)

    def num_blocks(self, samples: int) -> int:
        """The rows, and an empty one."""
        return self.num_rows(samples) + self.more_blocks

    def build(self, width: int, layers: Layers) -> "LogMelFront":
        """Two convolutions."""
        return LogMelFront(self.mels, width, layers)


class WaveformConfig(FrontKind):
    """Convolutions over the samples themselves.

    Source: wav2vec 2.0 (2006.11477) §2 and §4.2.
    """

    kind: Literal["waveform"]
    channels: Annotated[list[Few], Field(min_length=1, max_length=16)] = Field(
        default_factory=lambda: [512] * 7
    )
    """Of each convolution."""
    kernels: Annotated[list[Few], Field(min_length=1, max_length=16)] = Field(
        default_factory=lambda: [10, 3, 3, 3, 3, 2, 2]
    )
    strides: Annotated[list[Few], Field(min_length=1, max_length=16)] = Field(
        default_factory=lambda: [5, 2, 2, 2, 2, 2, 2]
    )
    """From one value that a convolution gives to the next; together 320, 20 ms at 16 kHz."""
    norm: Literal["first", "each"] = "first"
    """Whether the `first` convolution's channels are normed over the time of each sound (base
    models), or all channels behind `each` at each time (large ones)."""
    biases: bool = False
    """Whether convolutions have them."""
    projection_norm: bool = True
    """Whether a norm stands before the linear layer that gives rows their width."""
    norm_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Of the norm before that layer; convolutions have 1e-5."""
    position_kernel: Few = 128
    """Rows that the convolution reads which tells positions."""
    position_groups: Few = 16
    """Groups of its channels."""
    normalized: bool = True
    """Whether samples of each sound get mean 0 and variance 1."""

    @model_validator(mode="after")
    def _fits(self) -> "WaveformConfig":
        counts = {len(self.channels), len(self.kernels), len(self.strides)}
        if len(counts) > 1:
            raise ValueError(
                f"strides: {len(self.channels)} channels, {len(self.kernels)} kernels and "
                f"{len(self.strides)} strides: give each convolution one of each"
            )
        if any(k < s for k, s in zip(self.kernels, self.strides, strict=True)):
            raise ValueError("strides: one is larger than its kernel, and would leave samples out")
        if math.prod(self.strides) > 2**16:
            raise ValueError(f"strides: {math.prod(self.strides)} samples a row are too many")
        return self

    @property
    def block_samples(self) -> int:
        """All strides together."""
        return math.prod(self.strides)

    @property
    def block_frames(self) -> int:
        """What the first convolution gives of a block."""
        return self.block_samples // self.strides[0]

    @property
    def block_width(self) -> int:
        """Its samples."""
        return self.block_samples

    @property
    def least_samples(self) -> int:
        """What one row is made of; shorter sounds end in silence."""
        return self.fewest_samples(1)

    def fewest_samples(self, rows: int) -> int:
        """What the rows are made of."""
        needed = rows
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            needed = (needed - 1) * stride + kernel
        return needed

    @property
    def more_blocks(self) -> int:
        """What the last row is made of beyond its own block, and the samples behind it."""
        return -(-self.least_samples // self.block_samples)

    def num_frames(self, samples: int) -> int:
        """What the first convolution gives."""
        samples = max(samples, self.least_samples)
        return (samples - self.kernels[0]) // self.strides[0] + 1

    def num_rows(self, samples: int) -> int:
        """What the last one gives."""
        count = max(samples, self.least_samples)
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            count = (count - kernel) // stride + 1
        return count

    def num_blocks(self, samples: int) -> int:
        """All that have a sample."""
        return -(-max(samples, self.least_samples) // self.block_samples)

    def build(self, width: int, layers: Layers) -> "WaveformFront":
        """The convolutions, and what gives rows their width."""
        return WaveformFront(self, width, layers)


class LogMelFront(nn.Module):
    """Two convolutions of three frames each."""

    def __init__(self, mels: int, width: int, layers: Layers):
        super().__init__()
        self.convolutions = nn.ModuleList(
            layers.linear(channels * _KERNEL, width, init=_by_fan(channels * _KERNEL))
            for channels in (mels, width)
        )

    def forward(self, blocks: Blocks) -> Float[Tensor, "K E"]:
        """Every sound between zeros."""
        K = len(blocks.values)
        frames = blocks.values.view(_STRIDE * K, -1)
        frames = F.gelu(self.convolutions[0](_windows(frames, 1, before=1)))
        place = torch.arange(_STRIDE, device=frames.device)
        is_real = (place < blocks.valid[:, None]).view(-1, 1)
        frames = frames.masked_fill(~is_real, 0)
        return F.gelu(self.convolutions[1](_windows(frames, _STRIDE, before=1)))


class WaveformFront(nn.Module):
    """Convolutions without padding, GELU behind each, and a linear layer."""

    def __init__(self, config: WaveformConfig, width: int, layers: Layers):
        super().__init__()
        self.config = config
        ins = [1, *config.channels[:-1]]
        fans = [channels * kernel for channels, kernel in zip(ins, config.kernels, strict=True)]
        self.convolutions = nn.ModuleList(
            layers.linear(fan, channels, init=_by_fan(fan), bias=config.biases)
            for fan, channels in zip(fans, config.channels, strict=True)
        )
        self.norms = nn.ModuleList()
        if config.norm == "first":
            self.norms.append(TimeNorm(config.channels[0], layers.device))
        else:
            self.norms.extend(layers.norm(channels) for channels in config.channels)
        last = config.channels[-1]
        self.projection_norm: Any = None
        if config.projection_norm:
            self.projection_norm = layers.norm(last, epsilon=config.norm_epsilon)
        self.projection: Any = layers.linear(last, width, init=normal(0.02))

    def forward(self, blocks: Blocks) -> Float[Tensor, "K E"]:
        """Rows that read beyond their sound are none of it."""
        x = blocks.values.reshape(-1, 1)
        shapes = zip(self.config.kernels, self.config.strides, strict=True)
        for i, (convolution, (kernel, stride)) in enumerate(
            zip(self.convolutions, shapes, strict=True)
        ):
            x = convolution(_windows(x, stride, kernel=kernel))
            if i < len(self.norms):
                norm = self.norms[i]
                x = norm(x, blocks) if isinstance(norm, TimeNorm) else norm(x)
            x = F.gelu(x)
        if self.projection_norm is not None:
            x = self.projection_norm(x)
        return self.projection(x)


class TimeNorm(nn.Module):
    """Norm of each channel over the time of each sound: a group norm with as many groups."""

    def __init__(self, channels: int, device: str | None):
        super().__init__()
        self.init: Initializer = constant(1.0)
        self.weight = nn.Parameter(torch.empty(channels, device=device))
        self.bias = nn.Parameter(torch.empty(channels, device=device))

    def forward(self, x: Float[Tensor, "T C"], blocks: Blocks) -> Float[Tensor, "T C"]:
        """Frames [T, C], some of each block [K]; in fp32."""
        K, C = len(blocks.valid), x.shape[1]
        frames = x.float().view(K, -1, C)
        place = torch.arange(frames.shape[1], device=x.device)
        is_real = (place < blocks.valid[:, None])[..., None]
        # A product and no sum by index, which would not be the same every time on GPUs.
        of_sound = F.one_hot(blocks.owners, blocks.num_sounds).float()
        count = (of_sound.T @ blocks.valid.float()).clamp(min=1)[:, None]

        def means(values: Tensor) -> Tensor:
            inside = values.masked_fill(~is_real, 0).sum(dim=1)
            return (of_sound @ (of_sound.T @ inside / count))[:, None]

        frames = frames - means(frames)
        frames = frames * torch.rsqrt(means(frames.square()) + 1e-5)
        normed = frames * self.weight.float() + self.bias.float()
        return normed.view(-1, C).to(x.dtype)


class PositionConvolution(nn.Module):
    """Tells rows their positions by what lies around them, in groups of channels.

    Source: wav2vec 2.0 (2006.11477) §2; its weight norm is left out, which changes how it trains
    and not what it computes.
    """

    def __init__(self, width: int, *, kernel: int, groups: int, device: str | None):
        super().__init__()
        self.groups = groups
        self.init: Initializer = normal(2 / math.sqrt(kernel * width))
        shape = (width, width // groups, kernel)
        self.weight = nn.Parameter(torch.empty(shape, device=device))
        self.bias = nn.Parameter(torch.empty(width, device=device))

    def forward(self, grid: Float[Tensor, "N L E"]) -> Float[Tensor, "N L E"]:
        """Of sounds laid out with zeros behind them."""
        padding = self.weight.shape[-1] // 2
        x = F.conv1d(grid.mT, self.weight, self.bias, padding=padding, groups=self.groups)
        return F.gelu(x[..., : grid.shape[1]]).mT


def sinusoids(weight: Tensor, generator: torch.Generator) -> None:
    """Fill a table of positions with sines, and then cosines, of ever longer waves (Whisper)."""
    rows, width = weight.shape
    half = width // 2
    steps = torch.exp(-math.log(10_000) / max(1, half - 1) * torch.arange(half))
    angles = torch.arange(rows)[:, None] * steps
    weight.zero_()
    weight[:, : 2 * half] = torch.cat([angles.sin(), angles.cos()], dim=1)


def _by_fan(fan: int) -> Initializer:
    return normal(math.sqrt(2 / fan))


def _windows(
    frames: Float[Tensor, "T C"], stride: int, *, kernel: int = _KERNEL, before: int = 0
) -> Float[Tensor, "_ _"]:
    """What each place of a convolution reads, [T / stride, C kernel]; zeros beyond the ends."""
    frames = F.pad(frames, (0, 0, before, kernel - stride - before))
    return frames.unfold(0, kernel, stride).flatten(1)
