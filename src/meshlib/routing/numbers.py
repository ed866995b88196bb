"""Decimal numbers in header values, as Envoy reads them: blanks around and a plus sign are allowed, nothing else is."""

from __future__ import annotations

import re

__all__ = ["parse_signed", "parse_unsigned"]

_BLANK = r"[ \t\n\v\f\r]*"
_UNSIGNED = re.compile(rf"{_BLANK}\+?0*([0-9]{{1,20}}){_BLANK}")
_SIGNED = re.compile(rf"{_BLANK}([+-]?)0*([0-9]{{1,19}}){_BLANK}")


def parse_unsigned(text: str) -> int | None:
    """A number of at most 64 bits; None for anything else."""
    match = _UNSIGNED.fullmatch(text)
    if match is None:
        return None
    value = int(match[1])
    return value if value < 2**64 else None


def parse_signed(text: str) -> int | None:
    """A number from -2**63 to 2**63 - 1; None for anything else."""
    match = _SIGNED.fullmatch(text)
    if match is None:
        return None
    value = int(match[1] + match[2])
    return value if -(2**63) <= value < 2**63 else None
