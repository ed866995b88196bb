"""RuntimeFractionalPercent (config.core.v3) without runtime overrides."""

from __future__ import annotations

from collections.abc import Callable

from meshlib.resources.matching import FractionalPercent

__all__ = ["compile_fraction"]


def compile_fraction(fraction: FractionalPercent) -> Callable[[int], bool]:
    """A predicate on a 64-bit random number: `number % denominator < numerator`."""
    numerator, denominator = fraction.numerator, fraction.denominator
    return lambda number: number % denominator < numerator
