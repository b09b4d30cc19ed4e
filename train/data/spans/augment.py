"""Pictures changed at random, so that what trains never sees one twice alike."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Final

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from pydantic import AfterValidator, Field

from model.config import Config

_BINS: Final = 31
_LAST_BIN: Final = _BINS - 1
_MOST_SHEAR: Final = 0.3
_MOST_SHIFT: Final = 150 / 331
"""Of a side."""
_MOST_DEGREES: Final = 30.0
_MOST_FACTOR: Final = 0.9
_MOST_BITS_LOST: Final = 4
_TRIES: Final = 10
"""Crops that are drawn until one lies inside."""
_HOW: Final = Image.Resampling.BILINEAR

_PAIR: Final = Field(min_length=2, max_length=2)


def _rising(pair: list[float]) -> list[float]:
    if pair[0] > pair[1]:
        raise ValueError(f"{pair} falls: write the smaller one first")
    return pair


class AugmentConfig(Config):
    """How a picture is changed each time that it trains; what is asked or validated never is.

    First a part is cut out, if `area` says so, and made as large as the whole; then it may be
    mirrored; then follow `operations` of RandAugment.
    """

    area: (
        Annotated[list[Annotated[float, Field(gt=0, le=1)]], _PAIR, AfterValidator(_rising)] | None
    ) = None
    """Least and largest share of the picture that is cut out."""
    aspect: Annotated[
        list[Annotated[float, Field(ge=0.1, le=10)]], _PAIR, AfterValidator(_rising)
    ] = Field(default_factory=lambda: [3 / 4, 4 / 3])
    """Least and largest width of that part by its height, in pixels."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How often left and right change places: not where texts tell one from the other."""
    operations: Annotated[int, Field(ge=0, le=16)] = 2
    """Of RandAugment, drawn for each picture."""
    magnitude: Annotated[int, Field(ge=0, le=_LAST_BIN)] = 9
    """Of these, from 0 to 30."""
    fill: Annotated[
        list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)
    ] = Field(default_factory=lambda: [255, 255, 255])
    """Red, green and blue of what comes into a picture from beyond its edges."""


def cut_out(
    image: Image.Image, config: AugmentConfig, random: np.random.Generator
) -> Image.Image | None:
    """A random part of a picture, as it is; None where the whole is to be taken.

    Source: torchvision's `RandomResizedCrop`.
    """
    if config.area is None:
        return None
    for _ in range(_TRIES):
        area = image.width * image.height * _between(config.area, random)
        aspect = math.exp(_between([math.log(each) for each in config.aspect], random))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        left, top = random.random(), random.random()
        if 0 < width <= image.width and 0 < height <= image.height:
            left = math.floor(left * (image.width - width + 1))
            top = math.floor(top * (image.height - height + 1))
            return image.crop((left, top, left + width, top + height))
    return None


def changed(image: Image.Image, config: AugmentConfig, random: np.random.Generator) -> Image.Image:
    """A picture of the same size, mirrored or not, behind operations of RandAugment.

    Source: RandAugment (1909.13719), with the operations and magnitudes of torchvision's.
    """
    if random.random() < config.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    names = [*OPERATIONS]
    fill = (config.fill[0], config.fill[1], config.fill[2])
    for _ in range(config.operations):
        name = names[math.floor(random.random() * len(names))]
        sign = -1 if random.random() < 0.5 else 1
        image = OPERATIONS[name](image, config.magnitude / _LAST_BIN, sign, fill)
    return image


def _between(bounds: list[float], random: np.random.Generator) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * random.random()


Fill = tuple[int, int, int]
Operation = Callable[[Image.Image, float, int, Fill], Image.Image]
"""Changes a picture by a share of what is most, in one direction or the other."""


def _moved(matrix: Callable[[float, Image.Image], tuple[float, ...]], most: float) -> Operation:
    """An operation that takes each pixel from elsewhere."""

    def operation(image: Image.Image, share: float, sign: int, fill: Fill) -> Image.Image:
        data = matrix(sign * share * most, image)
        return image.transform(image.size, Image.Transform.AFFINE, data, _HOW, fillcolor=fill)

    return operation


def _turned(image: Image.Image, share: float, sign: int, fill: Fill) -> Image.Image:
    return image.rotate(sign * share * _MOST_DEGREES, _HOW, fillcolor=fill)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """An operation that weakens or strengthens something."""
    return lambda image, share, sign, _: kind(image).enhance(1 + sign * share * _MOST_FACTOR)


def _posterized(image: Image.Image, share: float, _sign: int, _fill: Fill) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(share * _MOST_BITS_LOST))


def _solarized(image: Image.Image, share: float, _sign: int, _fill: Fill) -> Image.Image:
    return ImageOps.solarize(image, 255 * (1 - share))  # pyright: ignore[reportArgumentType]


OPERATIONS: Final[Mapping[str, Operation]] = {
    "Identity": lambda image, *_: image,
    "ShearX": _moved(lambda way, _: (1, way, 0, 0, 1, 0), _MOST_SHEAR),
    "ShearY": _moved(lambda way, _: (1, 0, 0, way, 1, 0), _MOST_SHEAR),
    "TranslateX": _moved(lambda way, image: (1, 0, -int(way * image.width), 0, 1, 0), _MOST_SHIFT),
    "TranslateY": _moved(lambda way, image: (1, 0, 0, 0, 1, -int(way * image.height)), _MOST_SHIFT),
    "Rotate": _turned,
    "Brightness": _enhanced(ImageEnhance.Brightness),
    "Color": _enhanced(ImageEnhance.Color),
    "Contrast": _enhanced(ImageEnhance.Contrast),
    "Sharpness": _enhanced(ImageEnhance.Sharpness),
    "Posterize": _posterized,
    "Solarize": _solarized,
    "AutoContrast": lambda image, *_: ImageOps.autocontrast(image),
    "Equalize": lambda image, *_: ImageOps.equalize(image),
}
"""Those of torchvision's RandAugment, by its names."""
