"""Pictures of drawings that are told in lines: SVG to PNG, the same on every host."""

import importlib
from typing import Any, Final

from train.errors import DataError

SIDE_PIXELS: Final = 128
"""Of the square that a rendered drawing fills in one direction at least."""
_PACKAGE: Final = "resvg_py"
_DPI: Final = 96.0
"""What CSS takes for an inch; without it drawings told in points have no size."""


class UnrenderedError(ValueError):
    """A drawing cannot be rendered; the message is the end of a sentence."""


def render(svg: bytes) -> bytes:
    """A PNG with transparency, whose longer side has `SIDE_PIXELS`.

    Fonts of the host are not used, so that letters which are no paths stay out.

    Raises:
        UnrenderedError: the drawing is damaged, or has no size.
        DataError: what renders is not installed.
    """
    try:
        text = svg.decode()
        return _resvg().svg_to_bytes(
            svg_string=text,
            width=SIDE_PIXELS,
            height=SIDE_PIXELS,
            dpi=_DPI,
            skip_system_fonts=True,
        )
    except ValueError as error:  # UnicodeDecodeError is one
        raise UnrenderedError(f"the drawing cannot be rendered ({error})") from error


def renderer() -> str:
    """What renders, with its version, for the manifest.

    Raises:
        DataError: it is not installed.
    """
    return f"resvg-py {_resvg().__version__}"


def _resvg() -> Any:
    """Imported here, because only who builds pictures needs it."""
    try:
        return importlib.import_module(_PACKAGE)
    except ImportError as error:
        raise DataError(
            f"resvg-py is missing, which renders drawings ({error}): install it with pip install "
            "--constraint constraints.txt -e '.[media]'"
        ) from error
