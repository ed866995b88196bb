"""What can be said of thousands of LbEndpoint messages at once, from their bytes alone.

An endpoint as every encoder writes it is `endpoint`, then a few bytes for health and weight: the *key* and the *tail*. The key
of a plain IPv4 endpoint has one layout for each length of its address and of its port; one regular expression knows them all,
so that a whole list of keys is checked by one match in C.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet

__all__ = ["all_canonical", "cut", "have_keys", "is_canonical", "keys_of", "with_tail"]

# By its first digit, and never looked at twice: this decides how fast a push is checked.
_OCTET = rb"(?:1[0-9]{0,2}+|2(?:[0-4][0-9]?+|5[0-5]?+|[6-9])?+|[3-9][0-9]?+|0)"
_IPV4 = rb"\.".join([_OCTET] * 4)
# A varint of 1 .. 3 bytes; 0xffff is FF FF 03.
_PORTS = ((1, rb"[\x00-\x7f]"), (2, rb"[\x80-\xff][\x01-\x7f]"), (3, rb"[\x80-\xff]{2}[\x01-\x03]"))


def _layout() -> bytes:
    # LbEndpoint.endpoint { Endpoint.address { Address.socket_address { SocketAddress.address .port_value } } }, where
    # each length follows from that of the text and that of the port. So a key says itself where it ends.
    by_size: dict[int, list[bytes]] = {}
    for octets, port in _PORTS:
        for length in range(7, 16):
            text = re.escape(bytes((length,))) + rb"(?=[0-9.]{%d}\x18)" % length
            by_size.setdefault(2 + length + 1 + octets, []).append(text + _IPV4 + rb"\x18" + port)
    return b"\x0a(?:%b)" % b"|".join(
        re.escape(bytes((size + 4, 0x0A, size + 2, 0x0A, size, 0x12))) + b"(?:%b)" % b"|".join(texts)
        for size, texts in sorted(by_size.items(), reverse=True)
    )


_CANONICAL = re.compile(_layout(), re.DOTALL)
_ALL_CANONICAL = re.compile(b"(?:%b)*+" % _layout(), re.DOTALL)


def cut(items: list[bytes]) -> tuple[list[bytes], dict[int, bytes]] | None:
    """The keys of many endpoints, and the tails that are not empty by index, ascending; None when one can't be cut.

    Whether what looks like a key is one is for `all_canonical` or `have_keys` to say.
    """
    try:
        longer = [index for index, item in enumerate(items) if len(item) != item[1] + 2]
    except IndexError:
        return None
    if not longer:
        return items, {}
    keys, tails = items.copy(), {}
    for index in longer:
        item = items[index]
        end = item[1] + 2
        if len(item) < end:
            return None
        keys[index], tails[index] = item[:end], item[end:]
    return keys, tails


def all_canonical(keys: list[bytes]) -> bool:
    """Whether all keys are plain IPv4 endpoints with a valid address and port."""
    return _ALL_CANONICAL.fullmatch(b"".join(keys)) is not None


def have_keys(items: list[bytes]) -> bool:
    """Whether each endpoint starts with a key."""
    # In the order of bytes, everything from 0A 00 up to (not including) 0A 80 has one.
    return not items or (min(items) >= b"\x0a\x00" and max(items) < b"\x0a\x80")


def keys_of(items: list[bytes]) -> list[bytes] | None:
    """The keys of many endpoints; None unless all are plain IPv4 endpoints with a valid address and port."""
    pieces = cut(items)
    return pieces[0] if pieces is not None and all_canonical(pieces[0]) else None


def is_canonical(key: bytes) -> bool:
    """Whether a key is a plain IPv4 endpoint with a valid address and port."""
    return _CANONICAL.fullmatch(key) is not None


def with_tail(tails: dict[int, bytes], wanted: AbstractSet[bytes], start: int) -> list[int]:
    """Of the endpoints whose tails these are, by index: those with a wanted one. start: is added to each index."""
    return [start + index for index, tail in tails.items() if tail in wanted]
