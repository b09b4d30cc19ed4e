"""Numbers as messages say them."""

import math


def counted(count: int, name: str) -> str:
    """A number of things: `1 span`, `2 spans`."""
    return f"{count:,} {name}" + ("" if count == 1 else "s")


def significant(value: float, digits: int = 3) -> str:
    """A number with as many digits as say something, and without an exponent: `0.00123`, `2.5`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
