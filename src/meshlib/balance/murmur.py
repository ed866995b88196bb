"""MurmurHash64A with the seed of libstdc++'s `std::hash<std::string>`, which Envoy offers for rings of older systems."""

from __future__ import annotations

__all__ = ["murmur_hash_2"]

_SEED = 0xC70F6907
_MULTIPLIER = 0xC6A4A7935BD1E995
_ALL = 2**64 - 1


def murmur_hash_2(data: bytes) -> int:
    """64 bits."""
    size = len(data)
    value = _SEED ^ (size * _MULTIPLIER & _ALL)
    whole = size & ~7
    for start in range(0, whole, 8):
        word = int.from_bytes(data[start : start + 8], "little") * _MULTIPLIER & _ALL
        value = (value ^ ((word ^ word >> 47) * _MULTIPLIER & _ALL)) * _MULTIPLIER & _ALL
    if size > whole:
        value = (value ^ int.from_bytes(data[whole:], "little")) * _MULTIPLIER & _ALL
    value = (value ^ value >> 47) * _MULTIPLIER & _ALL
    return value ^ value >> 47
