"""A video read by torch's own convolution and attention, one at a time."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.encoders.video import VideoEncoderConfig
from train.data.spans.tubes import Clip


def encode(weights: Mapping[str, Tensor], config: VideoEncoderConfig, clip: Clip) -> Tensor:
    """Vectors [m, E] of one video."""
    (rows, columns), T, P = clip.grid, config.times, config.patch_pixels
    tubes = torch.from_numpy(clip.patches).view(T, rows, columns, 3, config.tube_frames, P, P)
    video = tubes.permute(3, 0, 4, 1, 5, 2, 6).reshape(3, T * config.tube_frames, rows * P, -1)
    mean, std = (torch.tensor(value).view(3, 1, 1, 1) for value in (config.mean, config.std))
    kernel = weights["projection.weight"].view(-1, 3, config.tube_frames, P, P)
    x = F.conv3d(
        ((video.float() / 255 - mean) / std)[None],
        kernel,
        weights["projection.bias"],
        stride=kernel.shape[2:],
    )
    x = x[0].permute(1, 2, 3, 0)  # [T, rows, columns, E]
    first = weights.get("class_embedding.weight")
    if config.positions == "learned":
        _, table_rows, table_columns = config.table_sizes
        places = weights["positions.weight"]
        if first is not None:
            first, places = first + places[:1], places[1:]
        grid = places.view(table_rows, table_columns, -1).permute(2, 0, 1)[None]
        x = x + F.interpolate(grid, size=(rows, columns), mode="nearest")[0].permute(1, 2, 0)
        when = weights["time_positions.weight"].T[None]
        x = x + F.interpolate(when, size=T, mode="nearest")[0].T[:, None, None]
    else:
        x = x + sines(x.shape[:3].numel(), config.width).view(x.shape)
    for layer in range(config.num_layers):
        if config.attention == "joint":
            x, first = whole(weights, config, layer, x, first)
        else:
            x, first = halves(weights, config, layer, x, first)
    x = x.flatten(0, 2)
    if first is not None and config.class_token == "kept":
        x = torch.cat([first, x])
    return norm(weights, config, "final_norm", x) if config.final_norm else x


def sines(count: int, width: int) -> Tensor:
    angles = [
        [place / np.power(10_000, 2 * (channel // 2) / width) for channel in range(width)]
        for place in range(count)
    ]
    table = np.array(angles)
    table[:, 0::2], table[:, 1::2] = np.sin(table[:, 0::2]), np.cos(table[:, 1::2])
    return torch.from_numpy(table).float()


def whole(weights, config, layer, x, first):
    rows = x.flatten(0, 2) if first is None else torch.cat([first, x.flatten(0, 2)])
    rows = block(weights, config, f"blocks.{layer}.", rows)
    return (rows.view(x.shape), None) if first is None else (rows[1:].view(x.shape), rows[:1])


def halves(weights, config, layer, x, first):
    """All times of each place, then all places of each time."""
    T, rows, columns, _ = x.shape
    prefix = f"times.{layer}."
    seen = torch.empty_like(x)
    for row in range(rows):
        for column in range(columns):
            mine = norm(weights, config, f"{prefix}norm", x[:, row, column])
            mine = attend(weights, config, f"{prefix}attention.", mine)
            seen[:, row, column] = linear(weights, f"{prefix}projection", mine)
    x = x + seen
    name = f"blocks.{layer}."
    branches, of_class = torch.empty_like(x), []
    for time in range(T):
        mine = x[time].flatten(0, 1)
        mine = mine if first is None else torch.cat([first, mine])
        if config.norm == "pre":
            mine = norm(weights, config, f"{name}attention_norm", mine)
        mine = attend(weights, config, f"{name}attention.", mine)
        if first is not None:
            of_class.append(mine[:1])
            mine = mine[1:]
        branches[time] = mine.view(rows, columns, -1)
    x = behind(weights, config, name, x, branches)
    if first is not None:
        first = behind(weights, config, name, first, torch.stack(of_class).mean(dim=0))
    return x, first


def block(weights, config, name, x):
    normed = norm(weights, config, f"{name}attention_norm", x) if config.norm == "pre" else x
    return behind(weights, config, name, x, attend(weights, config, f"{name}attention.", normed))


def behind(weights, config, name, x, branch):
    """What follows the attention of a block."""

    def fed(rows: Tensor) -> Tensor:
        hidden = F.gelu(linear(weights, f"{name}feed_forward.up", rows))
        return linear(weights, f"{name}feed_forward.down", hidden)

    if config.norm == "pre":
        x = x + branch
        return x + fed(norm(weights, config, f"{name}feed_forward_norm", x))
    x = norm(weights, config, f"{name}attention_norm", x + branch)
    return norm(weights, config, f"{name}feed_forward_norm", x + fed(x))


def linear(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights, config, name, x):
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.layer_norm(x, weight.shape, weight, bias, config.norm_epsilon)


def attend(weights, config, name, x):
    parts = linear(weights, f"{name}qkv", x).view(len(x), config.heads, 3, -1)
    query, key, value = parts.permute(2, 1, 0, 3)
    mixed = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1) @ value
    return linear(weights, f"{name}out", mixed.transpose(0, 1).reshape(len(x), -1))
