"""One picture by torch's own convolution, interpolation and attention, written for clarity."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.encoders.image import ImageEncoderConfig
from train.data.spans.picture import Picture

Weights = dict[str, Tensor]


def encode(weights: Weights, config: ImageEncoderConfig, item: Picture) -> Tensor:
    """Its vectors."""
    E = config.width
    x = _patches(weights, config, item)
    has_class = config.class_token != "none"
    if config.positions:
        table = weights["positions.weight"]
        places = table[int(has_class) :].T.view(1, E, *config.table_grid)
        if item.grid != config.table_grid:
            places = F.interpolate(places, size=item.grid, mode="bicubic")
        x = x + places.flatten(2)[0].T
    if has_class:
        place = weights["positions.weight"][:1] if config.positions else 0
        x = torch.cat([weights["class_embedding.weight"] + place, x])
    if config.embedding_norm:
        x = _norm(weights, config, x, "embedding_norm")
    alpha = (2 * config.num_layers) ** 0.25 if config.norm == "deepnorm" else 1.0
    for i in range(config.num_layers):
        begin = f"blocks.{i}."
        part = {
            name.removeprefix(begin): value
            for name, value in weights.items()
            if name.startswith(begin)
        }
        number = i if config.relative_positions == "each" else 0
        table = weights.get(f"patch_biases.{number}.relative_bias.weight")
        relative = torch.zeros(1) if table is None else way_by_way(table, config, item)
        for name in ("attention", "feed_forward"):
            factor = part.get(f"{name}_scale.weight", torch.ones(E))
            read = _norm(part, config, x, f"{name}_norm") if config.norm == "pre" else x
            if name == "attention":
                branch = _attend(part, config, read, relative)
            else:
                branch = _feed(part, config, read)
            x = alpha * x + factor * branch
            if config.norm != "pre":
                x = _norm(part, config, x, f"{name}_norm")
    if config.final_norm:
        x = _norm(weights, config, x, "final_norm")
    return x[1:] if config.class_token == "dropped" else x


def _patches(weights: Weights, config: ImageEncoderConfig, item: Picture) -> Tensor:
    (rows, columns), P, E = item.grid, config.patch_pixels, config.width
    patches = torch.from_numpy(item.patches).float().view(rows, columns, 3, P, P)
    image = patches.permute(2, 0, 3, 1, 4).reshape(1, 3, rows * P, columns * P) / 255
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    image = (image - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    kernel = weights["projection.weight"].view(E, 3, P, P)
    return F.conv2d(image, kernel, weights["projection.bias"], stride=P).flatten(2)[0].T


def _linear(part: Weights, x: Tensor, name: str) -> Tensor:
    return x @ part[f"{name}.weight"].T + part[f"{name}.bias"]


def _norm(part: Weights, config: ImageEncoderConfig, x: Tensor, name: str) -> Tensor:
    weight, bias = part[f"{name}.weight"], part[f"{name}.bias"]
    return F.layer_norm(x, (config.width,), weight, bias, config.norm_epsilon)


def _attend(part: Weights, config: ImageEncoderConfig, x: Tensor, relative: Tensor) -> Tensor:
    parts = _linear(part, x, "attention.qkv").view(len(x), config.heads, 3, -1)
    query, key, value = parts.permute(2, 1, 0, 3)
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5 + relative
    mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(len(x), -1)
    return _linear(part, mixed, "attention.out")


def _feed(part: Weights, config: ImageEncoderConfig, x: Tensor) -> Tensor:
    hidden = _linear(part, x, "feed_forward.up")
    if config.activation == "quick_gelu":
        hidden = hidden * torch.sigmoid(1.702 * hidden)
    else:
        how = "tanh" if config.activation == "gelu_tanh" else "none"
        hidden = F.gelu(hidden, approximate=how)
    return _linear(part, hidden, "feed_forward.down")


def way_by_way(table: Tensor, config: ImageEncoderConfig, item: Picture) -> Tensor:
    """[A, L, L] bias of each pair, one by one."""
    (rows, columns), (H, W) = item.grid, config.table_grid
    patches = table[: (2 * H - 1) * (2 * W - 1)].T.view(1, -1, 2 * H - 1, 2 * W - 1)
    if item.grid != config.table_grid:
        patches = F.interpolate(patches, size=(2 * rows - 1, 2 * columns - 1), mode="bilinear")
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    first = [] if config.class_token == "none" else [None]
    bias = torch.zeros(config.heads, len(first) + len(cells), len(first) + len(cells))
    for i, query in enumerate([*first, *cells]):
        for j, key in enumerate([*first, *cells]):
            if query is not None and key is not None:
                down, right = query[0] - key[0], query[1] - key[1]
                bias[:, i, j] = patches[0, :, down + rows - 1, right + columns - 1]
            else:
                way = -1 if query is key else (-3 if query is None else -2)
                bias[:, i, j] = table[way]
    return bias
